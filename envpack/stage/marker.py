"""The marker says that a staged prefix is complete; it is written last, before the prefix gets its name."""

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
        "boot_id": boot_id(),
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


def is_staged_prefix(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode) and marker_path(path).exists()
    except OSError:
        return False


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
