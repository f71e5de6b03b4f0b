"""Check whether a stage from an earlier job can be used as it is, and put back the files that it has lost.

Only the stager imports this.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.archive.index import Index, show_path
from envpack.stage import marker

if TYPE_CHECKING:
    from envpack.stage.relocate import Relocation

# In tables of sizes: a symlink.
_LINK = -1


def fault_of(prefix: Path, index: Index, relocation: Relocation) -> str | None:
    """Say why a staged prefix cannot be used as it is.

    Every file must be there with its kind and size, as cleaners of /tmp remove single old files. A stage from before the
    node's last boot is not trusted, as a crash can leave files of the right size without their content.

    Parameters
    ----------
    prefix : Path
        The staged prefix.
    index : Index
        The index of the archive that is to be staged.
    relocation : Relocation
        That archive's edits for this prefix.

    Returns
    -------
    str or None
        The reason; None if nothing is wrong.
    """
    if not stat.S_ISDIR(prefix.lstat().st_mode):
        return "it is not a directory"
    content = marker.read_marker(prefix)
    if not content:
        return "it has no marker"
    if content["pack_id"] != index.pack_id or content["prefix"] != os.fspath(prefix):
        return "its marker belongs to another staged prefix"
    if content["boot_id"] != marker.boot_id():
        return "it was staged before the node's last boot"
    return _first_missing(prefix, index, relocation)


def _first_missing(prefix: Path, index: Index, relocation: Relocation) -> str | None:
    top = os.fsencode(prefix)
    sizes: dict[bytes, int] = {}
    for folder in (b"", *index.paths[: index.folders.stop]):
        try:
            with os.scandir(top + b"/" + folder if folder else top) as entries:
                lead = folder + b"/" if folder else b""
                for entry in entries:
                    if entry.is_symlink():
                        sizes[lead + entry.name] = _LINK
                    elif not entry.is_dir():
                        sizes[lead + entry.name] = entry.stat(follow_symlinks=False).st_size
        except OSError:
            return f"{show_path(folder)} is missing"
    expected = _expected_sizes(index, relocation)
    # One comparison of two tables is faster than tens of thousands of single ones.
    if expected.items() <= sizes.items():
        return None
    path, size = next(item for item in expected.items() if sizes.get(item[0]) != item[1])
    return f"{show_path(path)} is missing, or does not have its {size} bytes"


def _expected_sizes(index: Index, relocation: Relocation) -> dict[bytes, int]:
    """Return the size of every file, and `_LINK` for every symlink, by path."""
    first, end = index.files.start, index.files.stop
    expected = dict(zip(index.paths[first:end], index.sizes[first:end], strict=True))
    for i in relocation.edits:
        expected[index.paths[i]] = relocation.size(index, i)
    for i in index.hardlinks:
        expected[index.paths[i]] = expected[index.links[i]]
    expected.update((index.paths[i], _LINK) for i in index.symlinks)
    # The node compiled these, or could not: Python does without them.
    for _, pyc in index.meta.get("compile") or []:
        expected.pop(os.fsencode(pyc), None)
    return expected


def repair(prefix: Path, fresh: Path, index: Index) -> None:
    """Put back the files that a staged prefix in use has lost; files of the right size stay as they are.

    Parameters
    ----------
    prefix : Path
        The staged prefix.
    fresh : Path
        A complete copy, from which files are moved.
    index : Index
        The index of both.
    """
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
