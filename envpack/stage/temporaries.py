"""Stages that are being written or removed: one stager at a time, in a folder of its own that others may only sweep.

Only the stager and `gc` import this. A temporary folder that is not locked belongs to a dead process
(`envpack.common.locks`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.locks import open_folder, try_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envpack.common.places import StrPath


def stager_lock(prefix: Path) -> Path:
    """Return the lock file that a process holds while it stages, checks or removes a staged prefix."""
    return prefix.parent / f".lock-{prefix.name}"


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
        except OSError:
            remove_tree(path)
            raise
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

    Whatever cannot be removed stays as well, for the next sweep: a file that an NFS client keeps as `.nfs…`, a mount
    point, an immutable file.

    Returns
    -------
    list[Path]
        The folders that were removed.
    """
    removed = []
    for path in _temporaries(folder):
        with contextlib.suppress(OSError):
            fd = open_folder(path)
            try:
                if try_lock(fd, path) and remove_tree(path):
                    removed.append(path)
            finally:
                os.close(fd)
    return removed


def remove_tree(path: StrPath) -> bool:
    """Remove a folder of this user with everything in it, read-only folders too; never through a symlink.

    Returns
    -------
    bool
        Whether it is gone. What cannot be removed stays.
    """
    return _remove_tree(os.fsencode(path))


def _remove_tree(path: bytes) -> bool:
    try:
        if not os.access(path, os.W_OK | os.X_OK):
            os.chmod(path, 0o700)  # noqa: PTH101
        with os.scandir(path) as entries:
            children = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except FileNotFoundError:
        return True
    except OSError:
        return False
    for child, is_folder in children:
        if is_folder:
            _remove_tree(child)
        else:
            with contextlib.suppress(OSError):
                os.unlink(child)  # noqa: PTH108
    try:
        os.rmdir(path)  # noqa: PTH106
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
