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

from envpack.archive.index import OWN_FOLDER, digest
from envpack.common.places import host_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envpack.archive.index import Index

FORMAT = 1
_FOLDER = os.fsdecode(OWN_FOLDER)
# Some time, with all digits.
_TIME_NS = 1_234_567_891_987_654_321


def marker_path(prefix: Path) -> Path:
    """Return the path of a staged prefix's marker."""
    return prefix / _FOLDER / "marker.json"


def index_path(prefix: Path) -> Path:
    """Return the path of a staged prefix's copy of the archive's index."""
    return prefix / _FOLDER / "index"


def write(folder: Path, prefix: Path, index: Index, compiled: Iterable[bytes]) -> None:
    """Write the marker and a copy of the index into a folder, in place of older ones.

    Parameters
    ----------
    folder : Path
        The complete copy, under its temporary name or under its own.
    prefix : Path
        Its own name.
    index : Index
        The archive's index.
    compiled : iterable of bytes
        Paths of the `.pyc` files that were just made in it. Only the marker says what they must be.
    """
    made = {os.fsdecode(path): digest((folder / os.fsdecode(path)).read_bytes()).hex() for path in compiled}
    marker = {
        "format": FORMAT,
        "pack_id": index.pack_id,
        "name": index.name,
        "prefix": os.fspath(prefix),
        "source": index.prefix,
        "archive": os.path.abspath(index.path) if index.path else "",  # noqa: PTH100
        "boot_id": boot_id(),
        "host": host_name(),
        "staged_at": time.time(),
        "compiled": {**read_marker(folder).get("compiled", {}), **made},
    }
    (folder / _FOLDER).mkdir(mode=0o700, exist_ok=True)
    _put(index_path(folder), index.raw)
    marker["time_step_ns"] = _time_step_ns(index_path(folder))
    _put(marker_path(folder), json.dumps(marker).encode())


def _time_step_ns(path: Path) -> int:
    """Return what a file system rounds modification times down to, in nanoseconds: whole seconds on some."""
    os.utime(path, ns=(time.time_ns(), _TIME_NS))
    kept = path.stat().st_mtime_ns
    return next((step for step in (1, 100, 1000, 10**6) if _TIME_NS // step * step == kept), 10**9)


def _put(path: Path, content: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(content)
    new.rename(path)


def read_marker(prefix: Path) -> dict[str, Any]:
    """Return a staged prefix's marker; `{}` if there is none that can be read."""
    try:
        marker = json.loads(marker_path(prefix).read_bytes())
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) and marker.get("format") == FORMAT else {}


def is_trusted(prefix: Path, pack_id: str | None = None) -> bool:
    """Tell whether a folder is a complete stage under its own name, from this boot of the node.

    A crash can leave files of the right size without their content, so a stage from before it is not trusted.

    Parameters
    ----------
    prefix : Path
        The staged prefix.
    pack_id : str, optional
        The pack id that it must have.
    """
    content = read_marker(prefix)
    return (
        is_staged_prefix(prefix)
        and content.get("prefix") == os.fspath(prefix)
        and content.get("boot_id") == boot_id()
        and pack_id in (None, content.get("pack_id"))
    )


def touch(prefix: Path) -> None:
    """Note that a staged prefix was used just now, for `gc`."""
    with contextlib.suppress(OSError):
        os.utime(marker_path(prefix))


def note_damaged(prefix: Path, paths: Iterable[bytes]) -> bool:
    """Remember members that were found damaged: the next stager puts them back. Tell whether that could be written."""
    try:
        _put(_damaged_path(prefix), b"".join(path + b"\0" for path in paths))
    except OSError:
        return False
    return True


def damaged_paths(prefix: Path) -> set[bytes]:
    """Return the paths of the members that were found damaged."""
    try:
        return set(_damaged_path(prefix).read_bytes().split(b"\0")[:-1])
    except OSError:
        return set()


def forget_damaged(prefix: Path) -> None:
    """Forget what was found damaged, as it has been put back."""
    with contextlib.suppress(OSError):
        _damaged_path(prefix).unlink(missing_ok=True)


def _damaged_path(prefix: Path) -> Path:
    return prefix / _FOLDER / "damaged"


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
