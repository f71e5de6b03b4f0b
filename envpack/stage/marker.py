"""The marker says that a staged prefix is complete; it is written last, before the prefix gets its name."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envpack.archive.index import OWN_FOLDER, Index, show
from envpack.common.places import host_name

if TYPE_CHECKING:
    from envpack.stage.relocate import Relocation

FORMAT = 1
_LINK = -1
_FOLDER = os.fsdecode(OWN_FOLDER)


def marker_path(prefix: Path) -> Path:
    return prefix / _FOLDER / "marker.json"


def index_path(prefix: Path) -> Path:
    return prefix / _FOLDER / "index"


def write(folder: Path, prefix: Path, index: Index) -> None:
    """Write marker and index copy into a folder that is to become `prefix`."""
    own = folder / _FOLDER
    own.mkdir(mode=0o700)
    index_path(folder).write_bytes(index.raw)
    marker = {
        "format": FORMAT,
        "pack_id": index.pack_id,
        "name": index.name,
        "prefix": os.fspath(prefix),
        "archive": os.fspath(index.path or ""),
        "boot_id": _boot_id(),
        "host": host_name(),
        "staged_at": time.time(),
    }
    marker_path(folder).write_text(json.dumps(marker))


def read(prefix: Path) -> dict[str, Any]:
    """Return a staged prefix's marker, `{}` where there is none that can be read."""
    try:
        marker = json.loads(marker_path(prefix).read_bytes())
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) and marker.get("format") == FORMAT else {}


def touch(prefix: Path) -> None:
    """Note that a staged prefix was used just now; `gc` goes by it."""
    with contextlib.suppress(OSError):
        os.utime(marker_path(prefix))


def what_is_wrong(prefix: Path, index: Index, relocation: Relocation) -> str | None:
    """Return why a staged prefix cannot be used as it is, None if it can.

    Every file must be there, of its kind and size: cleaners of /tmp remove single old files. What was staged before the
    node's last boot is not trusted, as a crash can leave files of the right size without their content.
    """
    if not stat.S_ISDIR(prefix.lstat().st_mode):
        return "it is no folder"
    marker = read(prefix)
    if not marker:
        return "it has no marker"
    if marker["pack_id"] != index.pack_id or marker["prefix"] != os.fspath(prefix):
        return "its marker is that of another one"
    if marker["boot_id"] != _boot_id():
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
    wanted = _wanted(index, relocation)
    # One comparison of two tables, not tens of thousands.
    if wanted.items() <= found.items():
        return None
    path, size = next(item for item in wanted.items() if found.get(item[0]) != item[1])
    return f"{show(path)} is missing, or has not its {size} bytes"


def _wanted(index: Index, relocation: Relocation) -> dict[bytes, int]:
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


def is_staged_prefix(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode) and marker_path(path).exists()
    except OSError:
        return False


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


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
    (prefix / _FOLDER).mkdir(mode=0o700, exist_ok=True)
    index_path(fresh).rename(index_path(prefix))
    marker_path(fresh).rename(marker_path(prefix))
