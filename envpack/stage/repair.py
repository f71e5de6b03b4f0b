"""Put members that a stage has lost, or that were changed, back into it, and take out what does not belong there.

Only the stager imports this module. Files are renamed into their places, as processes may use the stage, and as other
stages may share a file's inode: nothing is written in place.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from envpack.archive.index import OWN_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from envpack.archive.index import Index


def put_back(
    prefix: Path, fresh: Path, index: Index, members: Collection[int], further: Iterable[bytes]
) -> None:
    """Move members from a temporary folder into a stage.

    Parameters
    ----------
    prefix : Path
        The staged prefix.
    fresh : Path
        A folder of the same file system, with the members' files and links. It is removed afterwards.
    index : Index
        The archive's index.
    members : collection of int
        Their numbers. Folders are made, or get their modes back.
    further : iterable of bytes
        Paths of more files in the temporary folder.
    """
    for i in sorted(members):
        path = index.paths[i]
        target = _join(prefix, path)
        if i not in index.folders:
            _move(prefix, fresh, path)
            continue
        info = os.lstat(target) if os.path.lexists(target) else None
        if info and not stat.S_ISDIR(info.st_mode):
            take_out(prefix, fresh, [path])
            info = None
        if info is None:
            _writing_to(target, lambda target=target: os.mkdir(target))  # type: ignore[misc] # noqa: PTH102
        os.chmod(target, 0o700 | index.modes[i])  # noqa: PTH101
    for path in further:
        _move(prefix, fresh, path)


def take_out(prefix: Path, fresh: Path, paths: Iterable[bytes]) -> None:
    """Move files, folders or links from a stage into the temporary folder, which is removed afterwards."""
    aside = _join(fresh, OWN_FOLDER)
    os.makedirs(aside, mode=0o700, exist_ok=True)  # noqa: PTH103
    for path in paths:
        source = _join(prefix, path)
        target = b"%s/%s" % (aside, os.urandom(8).hex().encode())
        _writing_to(source, lambda source=source, target=target: os.rename(source, target))  # type: ignore[misc] # noqa: PTH104


def _move(prefix: Path, fresh: Path, path: bytes) -> None:
    source, target = _join(fresh, path), _join(prefix, path)
    if os.path.isdir(target) and not os.path.islink(target):  # noqa: PTH112, PTH114
        take_out(prefix, fresh, [path])
    _writing_to(target, lambda: os.rename(source, target))  # noqa: PTH104


def _writing_to(path: bytes, change: Callable[[], None]) -> None:
    """Make a change in a path's folder, which may have lost its mode."""
    try:
        change()
    except PermissionError:
        folder = os.path.dirname(path)  # noqa: PTH120
        os.chmod(folder, 0o700 | stat.S_IMODE(os.lstat(folder).st_mode))  # noqa: PTH101
        change()


def _join(folder: Path, path: bytes) -> bytes:
    return os.fsencode(folder) + b"/" + path
