"""Locks between processes of one host, or of several on NFS: flock(2) on lock files and on folders.

The kernel drops such a lock with the last process that has the descriptor, so a lock that can be taken proves that its
former owner is dead. Any room may import this module; nodes load it, so it imports the rest of envpack only to wait.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from envpack.common.places import StrPath
    from envpack.errors import EnvpackError

# After this time, a process that waits for a lock says who holds it.
SAY_AFTER_S = 2.0


def open_lock_file(path: StrPath) -> int:
    """Open a lock file, never through a symlink; make it if need be (mode 0600)."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def open_folder(path: StrPath) -> int:
    """Open a folder, never through a symlink."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def try_lock(fd: int, path: StrPath, *, shared: bool = False) -> bool:
    """Take a lock if no other process holds it.

    Parameters
    ----------
    fd : int
        The open file or folder. The lock lasts until this descriptor and its copies are closed.
    path : str or os.PathLike
        Its path. If something else has taken that path since, the lock would exclude nobody.
    shared : bool, default False
        Let others hold the lock too, if they take it shared.

    Returns
    -------
    bool
        False if another process holds the lock, or `path` names another file now.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    try:
        now = os.lstat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino)


def wait_for_lock(fd: int) -> None:
    """Take a lock alone; wait, without a limit, while another process holds it."""
    fcntl.flock(fd, fcntl.LOCK_EX)


def take_lock(
    path: StrPath,
    timeout_s: float,
    *,
    error: type[EnvpackError],
    say: Callable[[str], None] | None = None,
) -> int:
    """Take a lock file alone; wait while another process holds it, and say who that is.

    Parameters
    ----------
    path : str or os.PathLike
        The lock file, made if need be. It holds the host, process id, user id and start of whoever took the lock last.
    timeout_s : float
        How long to wait, in seconds.
    error : type
        The class of the error to raise after that time.
    say : callable, optional
        Called once, with one line, after two seconds of waiting (default: log it as a warning).

    Returns
    -------
    int
        The lock's file descriptor; closing it releases the lock.

    Raises
    ------
    EnvpackError
        The lock was not released in time; the message names its holder, and a command to look at it.
    OSError
        The file cannot be made, or its file system has no locks.
    """
    began = time.monotonic()
    said = False
    pause_s = 0.02
    while True:
        fd = open_lock_file(path)
        try:
            if try_lock(fd, path):
                _write_holder(fd)
                return fd
            waited_s = time.monotonic() - began
            if waited_s >= min(timeout_s, SAY_AFTER_S):
                holder, remedy = _holder(fd, path)
                if waited_s >= timeout_s:
                    raise error(f"{holder} holds the lock {os.fspath(path)}; waited {waited_s:.0f} s", remedy)
                if not said:
                    said = True
                    line = (
                        f"waiting up to {timeout_s:.0f} s for the lock {os.fspath(path)}: {holder} holds it"
                    )
                    (say or _warn)(line)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        time.sleep(pause_s)
        pause_s = min(0.5, 1.5 * pause_s)


def _warn(line: str) -> None:
    import logging

    logging.getLogger(__name__).warning("%s", line)


def _write_holder(fd: int) -> None:
    text = f"{os.uname().nodename} {os.getpid()} {os.geteuid()} {time.time():.0f}\n".encode()
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, text, 0)
    except OSError:
        pass  # a full file system: the lock holds all the same


def _holder(fd: int, path: StrPath) -> tuple[str, str]:
    """Return who holds a lock, for a message, and the remedy."""
    from shlex import quote

    from envpack.common.trust import user_name

    try:
        host, pid, uid, since = os.pread(fd, 1024, 0).decode().split()
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(since)))
        who = f"process {int(pid)} of {user_name(int(uid))} on {host}, since {at},"
    except ValueError:
        host = ""
    here = os.uname().nodename
    state = _process_state(pid) if host == here else ""
    if not host or (host == here and not state):
        # It took the lock otherwise, or a child of it lives longer and has the lock's descriptor.
        return f"another process on {here}", f"Find it: fuser -v {quote(os.fspath(path))}"
    if state == "T":
        return f"{who} which is suspended,", f"Let it continue: kill -CONT {pid}"
    where = "See" if host == here else f"On {host}, see"
    return who, f"{where} what it does, and end it if it hangs: ps -fp {pid}"


def _process_state(pid: str) -> str:
    """Return a process's state letter (proc_pid_stat(5)), "" if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return ""


def hold_folder(path: StrPath) -> int:
    """Hold a folder, shared with others that use it; wait while another process removes or replaces it.

    Returns
    -------
    int
        A descriptor that child processes inherit, so that the lock lasts as long as any of them.

    Raises
    ------
    OSError
        There is no such folder.
    """
    while True:
        fd = open_folder(path)
        fcntl.flock(fd, fcntl.LOCK_SH)
        if try_lock(fd, path, shared=True):
            os.set_inheritable(fd, True)
            return fd
        os.close(fd)  # meanwhile it was removed or replaced
