"""Locks between processes of one host: flock(2) on lock files and on folders.

The kernel drops such a lock with the last process that has the descriptor, so a lock that can be taken proves that its
former owner is dead.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envpack.common.places import StrPath


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
    fd = open_folder(path)
    fcntl.flock(fd, fcntl.LOCK_SH)
    os.set_inheritable(fd, True)
    return fd
