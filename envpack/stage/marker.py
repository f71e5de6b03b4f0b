"""The marker of a staged prefix: it says that the copy is complete, and what it is a copy of.

A stager writes it last, before the staged prefix gets its name. Its modification time is the time of the last use.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envpack.archive.index import OWN_FOLDER
from envpack.common.places import host_name

if TYPE_CHECKING:
    from envpack.archive.index import Index

FORMAT = 1
_FOLDER = os.fsdecode(OWN_FOLDER)


def marker_path(prefix: Path) -> Path:
    """Return the path of a staged prefix's marker."""
    return prefix / _FOLDER / "marker.json"


def index_path(prefix: Path) -> Path:
    """Return the path of a staged prefix's copy of the archive's index."""
    return prefix / _FOLDER / "index"


def write(folder: Path, prefix: Path, index: Index) -> None:
    """Write the marker and a copy of the index into a folder.

    Parameters
    ----------
    folder : Path
        The complete copy, under its temporary name.
    prefix : Path
        The name that it will get.
    index : Index
        The archive's index.
    """
    own = folder / _FOLDER
    own.mkdir(mode=0o700)
    index_path(folder).write_bytes(index.raw)
    marker = {
        "format": FORMAT,
        "pack_id": index.pack_id,
        "name": index.name,
        "prefix": os.fspath(prefix),
        "archive": os.fspath(index.path or ""),
        "boot_id": boot_id(),
        "host": host_name(),
        "staged_at": time.time(),
    }
    marker_path(folder).write_text(json.dumps(marker))


def read_marker(prefix: Path) -> dict[str, Any]:
    """Return a staged prefix's marker; `{}` if there is none that can be read."""
    try:
        marker = json.loads(marker_path(prefix).read_bytes())
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) and marker.get("format") == FORMAT else {}


def touch(prefix: Path) -> None:
    """Note that a staged prefix was used just now, for `gc`."""
    with contextlib.suppress(OSError):
        os.utime(marker_path(prefix))


def is_staged_prefix(path: Path) -> bool:
    """Tell whether a path is a folder with a marker."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode) and marker_path(path).exists()
    except OSError:
        return False


def boot_id() -> str:
    """Return the kernel's identifier of the host's current boot (random(4)); empty if it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
