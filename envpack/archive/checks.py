"""Refuse an index that would make a stager write outside of the staged prefix: an archive may come from anybody.

The checks go over all members at once, as a node does this for tens of thousands before it writes the first. Device nodes
and pipes need no check: an index cannot name one. Only `envpack.archive.encoding` imports this module.
"""

from __future__ import annotations

import os
from operator import add, gt
from typing import TYPE_CHECKING, Any

from envpack.archive.index import OWN_FOLDER, PACK_AGAIN, Index, show_path
from envpack.errors import CorruptArchiveError, HostileArchiveError

if TYPE_CHECKING:
    from pathlib import Path

# A stager takes a whole frame into memory.
MAX_FRAME_BYTES = 1 << 24
_NO_NAMES = frozenset((b"", b".", b".."))


def _hostile(problem: str) -> HostileArchiveError:
    return HostileArchiveError(problem, "Do not use this archive. " + PACK_AGAIN)


def check_meta(meta: dict[str, Any]) -> None:
    """Raise `ValueError` or `KeyError` unless `meta` has the keys, of the right types, that every reader needs."""
    for key in ("kind", "name", "pack_id", "prefix"):
        if not isinstance(meta[key], str):
            raise ValueError(f"{key} is {meta[key]!r}")
    if not isinstance(meta["part_bytes"], int) or meta["part_bytes"] < 1:
        raise ValueError(f"part_bytes is {meta['part_bytes']!r}")
    pairs, warnings = meta["placeholders"], meta.get("warnings", [])
    if not isinstance(warnings, list) or not all(isinstance(value, str) for value in warnings):
        raise ValueError(f"warnings is {warnings!r}")
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise ValueError(f"placeholders is {pairs!r}")


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and [type(value) for value in pair] == [str, str] and pair[0] != ""


def check_members(index: Index, path: Path) -> None:
    """Check all that decides where a stager writes.

    Raises
    ------
    HostileArchiveError
        Something would be written outside of the staged prefix.
    CorruptArchiveError
        The index contradicts itself.
    """
    if index.counts[4] > index.counts[1]:
        raise CorruptArchiveError(f"{path}: the index has more bytecode than files", PACK_AGAIN)
    name = index.name
    if not name or name.startswith(".") or "/" in name or "\0" in name or name != name.strip():
        raise _hostile(f"{path}: {name!r} cannot name an environment")
    if max((*index.frame_sizes, *index.frame_raw_sizes), default=0) > MAX_FRAME_BYTES:
        raise _hostile(f"{path}: a frame has more than {MAX_FRAME_BYTES} bytes")
    if max(index.modes, default=0) > 0o777:
        raise _hostile(f"{path}: a member would be set-uid, set-gid or sticky")
    directories = {b"", *index.paths[: index.folders.stop]}
    _check_paths(index, path, directories)
    _check_places(index, path)
    _check_links(index, path)
    _check_compiled(index, path, directories)


def _check_paths(index: Index, path: Path, directories: set[bytes]) -> None:
    """Check that every path leads from the prefix through folders of the archive, never up or through a link."""
    wrong = [
        member
        for member in index.paths
        for parent, _, last in (member.rpartition(b"/"),)
        if parent not in directories or last in _NO_NAMES or member[:1] == b"/"
    ]
    if wrong or OWN_FOLDER in directories or OWN_FOLDER in index.paths:
        raise _hostile(
            f"{path}: member {show_path(wrong[0] if wrong else OWN_FOLDER)} is absolute, climbs with '..', or lies in "
            "something that is not a folder of the archive"
        )
    if len(set(index.paths)) < len(index.paths):
        seen: set[bytes] = set()
        twice = next(member for member in index.paths if member in seen or seen.add(member))  # type: ignore[func-returns-value]
        raise _hostile(f"{path}: member {show_path(twice)} occurs twice")


def _check_places(index: Index, path: Path) -> None:
    """Check that the files' content lies in the frames, one file after another."""
    first, end = index.files.start, index.files.stop
    starts = index.offsets[first:end].tolist()
    ends = list(map(add, starts, index.sizes[first:end]))
    starts.append(sum(index.frame_raw_sizes))
    if any(map(gt, ends, starts[1:])):
        at = next(i for i, stop, start in zip(index.files, ends, starts[1:], strict=True) if stop > start)
        raise CorruptArchiveError(
            f"{path}: member {show_path(index.paths[at])} lies outside of the frames", PACK_AGAIN
        )


def _check_links(index: Index, path: Path) -> None:
    """Check that every link has a target, and that a hard link's is a file of the archive."""
    if not all(index.links.values()):
        member = next(index.paths[i] for i, target in index.links.items() if not target)
        raise _hostile(f"{path}: the link {show_path(member)} names nothing")
    files = set(index.paths[index.files.start : index.files.stop]) if index.hardlinks else set()
    for i in index.hardlinks:
        if index.links[i] not in files:
            raise _hostile(f"{path}: the hard link {show_path(index.paths[i])} names no file of the archive")


def _check_compiled(index: Index, path: Path, directories: set[bytes]) -> None:
    """Check that the `.pyc` files to be made while staging lie in folders of the archive."""
    try:
        wanted = [(index.paths[member], member, os.fsencode(pyc)) for member, pyc in index.meta["compile"]]
        if wanted:
            bytes.fromhex(index.meta["python"]["magic"])
    except (IndexError, KeyError, TypeError, ValueError) as exc:
        raise CorruptArchiveError(f"{path}: the index cannot be read: {exc!r}", PACK_AGAIN) from exc
    for _, member, pyc in wanted:
        folder, _, name = pyc.rpartition(b"/")
        absolute = pyc[:1] == b"/"
        if (
            member not in index.files
            or absolute
            or folder not in directories
            or not name.endswith(b".pyc")
            or b"\0" in name
        ):
            raise _hostile(f"{path}: {show_path(pyc)} would be compiled outside of the archive's folders")
