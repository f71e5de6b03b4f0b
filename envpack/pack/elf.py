"""Make the run paths of libraries relative: where a library looks for others (elf(5), ld.so(8)).

conda's compilers put the prefix's `lib` there, as an absolute path. A staged library would then load others from the
source prefix; with a run path relative to itself, it loads them from the staged one. Only `envpack.pack.scan` imports
this module.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envpack.pack.members import Data

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 5, 15, 29


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
    for offset, value in _run_paths(data):
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


def _run_paths(data: Data) -> list[tuple[int, bytes]]:
    """Return the offsets and values of an ELF file's run paths; none if it is something else, or damaged."""
    if data[:4] != b"\x7fELF" or data[5:6] != b"\1":
        return []
    try:
        return _parse_64(data) if data[4:5] == b"\2" else []
    except struct.error:
        return []


def _parse_64(data: Data) -> list[tuple[int, bytes]]:
    (program_headers,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    loads = []
    dynamic = None
    for n in range(count):
        kind, _, offset, address, _, in_file = struct.unpack_from("<IIQQQQ", data, program_headers + n * size)
        if kind == _PT_LOAD:
            loads.append((address, offset, in_file))
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, in_file)
    if dynamic is None:
        return []
    strings = None
    names = []
    for at in range(dynamic[0], dynamic[0] + dynamic[1], 16):
        tag, value = struct.unpack_from("<QQ", data, at)
        if tag == _DT_NULL:
            break
        if tag == _DT_STRTAB:
            strings = value
        elif tag in (_DT_RPATH, _DT_RUNPATH):
            names.append(value)
    for address, offset, in_file in loads:
        if strings is not None and address <= strings < address + in_file:
            start = strings - address + offset
            return [(start + name, _string(data, start + name)) for name in dict.fromkeys(names)]
    return []


def _string(data: Data, start: int) -> bytes:
    end = data.find(b"\0", start)
    return data[start:end] if end >= 0 else b""
