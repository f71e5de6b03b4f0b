"""Make the run paths of libraries relative: where a library looks for others (elf(5), ld.so(8)).

Compilers put the folder of the libraries there, as an absolute path. A staged library would then load others from the
source prefix; with a run path relative to itself, it loads them from the staged one. Only `envpack.pack` imports this
module.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from envpack.common.elf import read_library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envpack.pack.members import Data


def relative_run_paths(
    data: Data, path: bytes, places: Sequence[tuple[bytes, bytes]]
) -> tuple[list[tuple[int, bytes, bytes]], bool]:
    """Return the changes that make those run paths of a library relative that name the prefix or the base interpreter.

    If there is no room for that, entries go that name no folder, repeat another one, or hold no library that is needed.

    Parameters
    ----------
    data : bytes or mmap
        The library's content.
    path : bytes
        Its path in the archive.
    places : sequence of (bytes, bytes)
        Each name of the prefix or of the base interpreter, and its path in the archive.

    Returns
    -------
    list of (int, bytes, bytes)
        Offset, old bytes, and new bytes of the same length.
    bool
        False if there is no room for one of the changes; it is not in the list.
    """
    edits = []
    fits = True
    library = read_library(data)
    for offset, value in library.run_paths if library else []:
        entries = value.split(b":")
        relative = {entry: _relative(entry, path, places) for entry in entries}
        if all(entry == relative[entry] for entry in entries):
            continue
        new = b":".join(relative[entry] for entry in entries)
        if len(new) > len(value):
            new = b":".join(_needed(entries, relative, library.needed if library else []))
        if len(new) > len(value):
            fits = False
            continue
        edits.append((offset, value, _filled(new, value)))
    return edits, fits


def folders_outside(data: Data, names: Sequence[bytes]) -> list[bytes]:
    """Return the folders that a library loads others from by its run paths, but none below one of the names."""
    library = read_library(data)
    if library is None:
        return []
    return [
        entry
        for _, value in library.run_paths
        for entry in value.split(b":")
        if entry.startswith(b"/")
        and not any(entry == name or entry.startswith(name + b"/") for name in names)
        and any(os.path.lexists(entry + b"/" + needed) for needed in library.needed)
    ]


def _relative(entry: bytes, path: bytes, places: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return an entry of a run path relative to the library's own folder, if it begins with one of the names."""
    for name, root in sorted(places, key=lambda place: len(place[0]), reverse=True):
        if entry == name or entry.startswith(name + b"/"):
            up = os.path.relpath(b"/" + root, b"/" + os.path.dirname(path))  # noqa: PTH120
            return b"$ORIGIN/" + up + entry[len(name) :]
    return entry


def _needed(entries: list[bytes], relative: dict[bytes, bytes], libraries: list[bytes]) -> list[bytes]:
    kept = [
        relative[entry]
        for entry in dict.fromkeys(entries)
        if not entry.startswith(b"/") or any(os.path.lexists(entry + b"/" + name) for name in libraries)
    ]
    if relative[entries[-1]] not in kept[-1:]:
        # Linkers let other strings share the end of this one: it must stay.
        kept.append(b"$ORIGIN/" + entries[-1].rpartition(b"/")[2])
    return list(dict.fromkeys(kept))


def _filled(new: bytes, old: bytes) -> bytes:
    """Fill a run path with slashes up to the length of the old one, before the end that they have in common."""
    same = len(os.path.commonprefix([new[::-1], old[::-1]]))  # noqa: RUF071
    at = new.find(b"/", len(new) - same)
    at = len(new) if at < 0 else at
    return new[:at] + b"/" * (len(old) - len(new)) + new[at:]
