"""Stages that are being written or removed: one stager at a time, in a folder of its own that others may only sweep.

Only the stager and `gc` import this. A temporary folder that is not locked belongs to a dead process
(`envpack.common.locks`).
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.locks import open_folder, open_lock_file, try_lock
from envpack.common.places import host_name
from envpack.errors import StageFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envpack.common.places import StrPath


def stager_lock(prefix: Path) -> Path:
    """Return the lock file that a process holds while it stages, checks or removes a staged prefix."""
    return prefix.parent / f".lock-{prefix.name}"


def lock_stager(prefix: Path, timeout_s: float) -> int:
    """Become the one stager of a staged prefix; wait while another one works on it.

    Parameters
    ----------
    prefix : Path
        The staged prefix; it need not exist yet.
    timeout_s : float
        How long to wait, in seconds.

    Returns
    -------
    int
        The lock's file descriptor; closing it releases the lock.

    Raises
    ------
    StageFailedError
        The other stager did not finish in that time.
    """
    path = stager_lock(prefix)
    deadline = time.monotonic() + timeout_s
    while True:
        fd = open_lock_file(path)
        if try_lock(fd, path):
            return fd
        os.close(fd)
        if time.monotonic() > deadline:
            from shlex import quote

            raise StageFailedError(
                f"another process on {host_name()} has held {path} for {timeout_s:.0f} s: it is alive but does not "
                "finish",
                f"Find it: fuser -v {quote(str(path))}",
            )
        time.sleep(0.02)


def make_temporary(folder: Path, stage_name: str) -> tuple[Path, int]:
    """Make a folder to write a stage in, locked for as long as this process lives.

    Parameters
    ----------
    folder : Path
        The user's folder in the staging root.
    stage_name : str
        The name that the stage will have there.

    Returns
    -------
    tuple[Path, int]
        The new folder, and its descriptor, which holds the lock.
    """
    while True:
        path = folder / f".tmp-{stage_name}-{os.getpid()}-{os.urandom(4).hex()}"
        path.mkdir(mode=0o700)
        try:
            fd = open_folder(path)
        except FileNotFoundError:
            continue
        if try_lock(fd, path):
            return path, fd
        # A sweep came between mkdir and lock; it removes the folder.
        os.close(fd)


def put_aside(path: Path) -> Path:
    """Give a folder a temporary name, under which a sweep removes it if this process dies."""
    aside = path.parent / f".tmp-old-{os.getpid()}-{os.urandom(4).hex()}"
    path.rename(aside)
    return aside


def _temporaries(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(".tmp-")]
    for name in names:
        yield folder / name


def sweep_temporaries(folder: Path) -> list[Path]:
    """Remove the temporary folders of dead stagers; the folder of a living one is locked, and stays.

    Returns
    -------
    list[Path]
        The folders that were removed.
    """
    removed = []
    for path in _temporaries(folder):
        try:
            fd = open_folder(path)
        except OSError:
            continue
        try:
            if try_lock(fd, path):
                remove_tree(path)
                removed.append(path)
        finally:
            os.close(fd)
    return removed


def remove_tree(path: StrPath) -> None:
    """Remove a folder of this user with everything in it, read-only folders too; never through a symlink."""
    _remove_tree(os.fsencode(path))


def _remove_tree(path: bytes) -> None:
    try:
        _empty(path)
    except PermissionError:
        os.chmod(path, 0o700)  # noqa: PTH101
        _empty(path)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)  # noqa: PTH106


def _empty(folder: bytes) -> None:
    try:
        with os.scandir(folder) as entries:
            children = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except FileNotFoundError:
        return
    for path, is_folder in children:
        if is_folder:
            _remove_tree(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108
