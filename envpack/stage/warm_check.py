"""Check whether a stage that is there already can be used as it is, and put back what one in use has lost."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.archive.index import Index, show
from envpack.stage import marker

if TYPE_CHECKING:
    from envpack.stage.relocate import Relocation

_LINK = -1


def what_is_wrong(prefix: Path, index: Index, relocation: Relocation) -> str | None:
    """Return why a staged prefix cannot be used as it is, None if it can.

    Every file must be there, of its kind and size: cleaners of /tmp remove single old files. What was staged before the
    node's last boot is not trusted, as a crash can leave files of the right size without their content.
    """
    if not stat.S_ISDIR(prefix.lstat().st_mode):
        return "it is no folder"
    found = marker.read(prefix)
    if not found:
        return "it has no marker"
    if found["pack_id"] != index.pack_id or found["prefix"] != os.fspath(prefix):
        return "its marker is that of another one"
    if found["boot_id"] != marker.boot_id():
        return "it was staged before the node's last boot"
    return _first_missing(prefix, index, relocation)


def _first_missing(prefix: Path, index: Index, relocation: Relocation) -> str | None:
    top = os.fsencode(prefix)
    found: dict[bytes, int] = {}
    for folder in (b"", *index.paths[: index.folders.stop]):
        try:
            with os.scandir(top + b"/" + folder if folder else top) as entries:
                lead = folder + b"/" if folder else b""
                for entry in entries:
                    if entry.is_symlink():
                        found[lead + entry.name] = _LINK
                    elif not entry.is_dir():
                        found[lead + entry.name] = entry.stat(follow_symlinks=False).st_size
        except OSError:
            return f"{show(folder)} is missing"
    wanted = _expected_sizes(index, relocation)
    # One comparison of two tables, not tens of thousands.
    if wanted.items() <= found.items():
        return None
    path, size = next(item for item in wanted.items() if found.get(item[0]) != item[1])
    return f"{show(path)} is missing, or has not its {size} bytes"


def _expected_sizes(index: Index, relocation: Relocation) -> dict[bytes, int]:
    """Return the size of every file, and `_LINK` for every symlink."""
    first, end = index.files.start, index.files.stop
    wanted = dict(zip(index.paths[first:end], index.sizes[first:end], strict=True))
    for i in relocation.edits:
        wanted[index.paths[i]] = relocation.size(index, i)
    for i in index.hardlinks:
        wanted[index.paths[i]] = wanted[index.links[i]]
    wanted.update((index.paths[i], _LINK) for i in index.symlinks)
    # Made on the node, if at all: Python does without them.
    for _, pyc in index.meta.get("compile") or []:
        wanted.pop(os.fsencode(pyc), None)
    return wanted


def repair(prefix: Path, fresh: Path, index: Index) -> None:
    """Put back what a stage in use has lost, from a fresh copy: what is there already stays as it is."""
    for i, path in enumerate(index.paths):
        target = Path(os.fsdecode(os.path.join(os.fsencode(prefix), path)))  # noqa: PTH118
        source = Path(os.fsdecode(os.path.join(os.fsencode(fresh), path)))  # noqa: PTH118
        if i in index.folders:
            target.mkdir(mode=source.lstat().st_mode & 0o777, exist_ok=True)
            continue
        try:
            same = target.lstat().st_size == source.lstat().st_size
        except FileNotFoundError:
            same = False
        if not same:
            source.rename(target)
    marker.index_path(prefix).parent.mkdir(mode=0o700, exist_ok=True)
    marker.index_path(fresh).rename(marker.index_path(prefix))
    marker.marker_path(fresh).rename(marker.marker_path(prefix))
