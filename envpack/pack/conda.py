"""Read conda's records: which files conda has installed, and where it has put the prefix in them.

The records are those in `conda-meta` (conda's package specification: `paths_data`). No package cache is needed: the
prefix's own bytes are packed, and a record only explains them. Only `envpack.pack.collect` imports this module.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from envpack.archive.index import DIGEST_BYTES
from envpack.errors import BrokenEnvironmentError
from envpack.pack.members import Member, from_stat

# What an installer writes for the environment, so that the package has no such file.
_MADE_HERE = (
    "unix_python_entry_point",
    "windows_python_entry_point_script",
    "windows_python_entry_point_exe",
)


@dataclass(slots=True)
class Managed:
    """What conda's records say of a file.

    Attributes
    ----------
    package : str
        The package that has installed it; of several, the last.
    relocation : str
        As in `Member`.
    rooms : tuple[int, ...]
        The lengths in bytes of the placeholders that the prefix may have replaced.
    digests : tuple[bytes, ...]
        The digests of the file as each package has installed it; empty if they are not recorded.
    """

    package: str
    relocation: str
    rooms: tuple[int, ...]
    digests: tuple[bytes, ...]


def read_records(prefix: Path) -> dict[bytes, Managed]:
    """Return what conda's records say of each file: its path, relative to the prefix -> its record.

    Folders and bytecode are left out.

    Raises
    ------
    BrokenEnvironmentError
        A record cannot be read; the message names it.
    """
    records: dict[bytes, Managed] = {}
    for path in sorted((prefix / "conda-meta").glob("*.json")):
        try:
            record = json.loads(path.read_bytes())
            items = [(os.fsencode(item["_path"]), item) for item in _paths(record)]
            listed = [os.fsencode(name) for name in record.get("files") or []]
            package = f"{record['name']} {record['version']}"
            found = {
                name: _managed(package, item) for name, item in items if item.get("path_type") != "directory"
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            stem = path.stem.rsplit("-", 2)[0]
            raise BrokenEnvironmentError(
                f"cannot pack {prefix}: conda's record {path} cannot be read: {exc!r}",
                f"Install the package anew: conda install --prefix {quote(os.fspath(prefix))} --force-reinstall {stem}",
            ) from exc
        for name in listed:
            found.setdefault(name, Managed(package, "unknown", (), ()))
        for name, managed in found.items():
            if not name.endswith((b".pyc", b".nonadmin")):
                other = records.get(name)
                records[name] = managed if other is None else _both(other, managed)
    return records


def _paths(record: dict[str, Any]) -> list[dict[str, Any]]:
    return (record.get("paths_data") or {}).get("paths") or []


def _managed(package: str, item: dict[str, Any]) -> Managed:
    placeholder = item.get("prefix_placeholder") or ""
    if item.get("path_type") in _MADE_HERE:
        return Managed(package, "unknown", (), ())
    digest = item.get("sha256_in_prefix") or ("" if placeholder else item.get("sha256")) or ""
    digests = (bytes.fromhex(digest)[:DIGEST_BYTES],) if digest else ()
    if not placeholder:
        return Managed(package, "managed", (), digests)
    return Managed(package, item.get("file_mode") or "text", (len(os.fsencode(placeholder)),), digests)


def _both(one: Managed, other: Managed) -> Managed:
    """Return the record of a file that two packages have installed, one over the other."""
    kinds = ("binary", "text", "unknown", "managed")
    known = one.digests and other.digests
    return Managed(
        other.package,
        min(one.relocation, other.relocation, key=kinds.index),
        tuple(sorted({*one.rooms, *other.rooms})),
        tuple(sorted({*one.digests, *other.digests})) if known else (),
    )


def activation_members(taken: set[bytes]) -> list[Member]:
    """Return the activate scripts that conda-pack adds to every archive, but none that the prefix has itself."""
    import conda_pack

    folder = Path(conda_pack.__file__).parent / "scripts" / "posix"
    members = []
    for name in ("activate", "deactivate", "activate.fish"):
        path, source = os.fsencode(f"bin/{name}"), os.fsencode(folder / name)
        if path not in taken:
            members.append(from_stat(path, source, os.lstat(source)))
    return members
