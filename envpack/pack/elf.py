"""Make the run paths of libraries relative: where a library looks for others (elf(5), ld.so(8)).

conda's compilers put the prefix's `lib` there, as an absolute path. A staged library would then load others from the
source prefix; with a run path relative to itself, it loads them from the staged one. Only `envpack.pack.scan` imports
this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from envpack.common.elf import read_library

if TYPE_CHECKING:
    from envpack.pack.members import Data


def relative_run_paths(
    data: Data, path: bytes, prefixes: list[bytes]
) -> tuple[list[tuple[int, bytes, bytes]], bool]:
    """Return the changes that make those run paths of a library relative that name the prefix.

    Parameters
    ----------
    data : bytes or mmap
        The library's content.
    path : bytes
        Its path, relative to the prefix.
    prefixes : list[bytes]
        All names of the prefix.

    Returns
    -------
    list of (int, bytes, bytes)
        Offset, old bytes, and new bytes of the same length.
    bool
        False if a run path names the prefix but has no room for a relative one.
    """
    edits = []
    fits = True
    up = b"$ORIGIN" + b"/.." * path.count(b"/")
    library = read_library(data)
    for offset, value in library.run_paths if library else []:
        entries = [_relative(entry, up, prefixes) for entry in value.split(b":")]
        new = b":".join(entry for entry, _ in entries)
        if not any(changed for _, changed in entries):
            continue
        room = len(value) - len(new)
        if room < 0:
            fits = False
            continue
        # Slashes in the middle fill the rest: the end must stay, as linkers let other strings share it.
        at = new.rindex(up) + len(up)
        edits.append((offset, value, new[:at] + b"/" * room + new[at:]))
    return edits, fits


def _relative(entry: bytes, up: bytes, prefixes: list[bytes]) -> tuple[bytes, bool]:
    for prefix in sorted(prefixes, key=len, reverse=True):
        if entry == prefix or entry.startswith(prefix + b"/"):
            return up + entry[len(prefix) :], True
    return entry, False
