"""Reads what a library of Linux (ELF, 64 bits, little-endian) says about itself: elf(5).

Every room may import this module; it imports only struct.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import mmap

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 15, 29


class Library(NamedTuple):
    """A library's own description.

    Attributes
    ----------
    needed : list of bytes
        The names of the libraries that it needs.
    run_paths : list of (int, bytes)
        Offset and text of each of its run paths.
    loaded_bytes : int
        The length of the file's beginning that is loaded into memory; what follows is for linkers and debuggers.
    """

    needed: list[bytes]
    run_paths: list[tuple[int, bytes]]
    loaded_bytes: int


def read_library(data: bytes | mmap.mmap) -> Library | None:
    """Return the description of a library; None if the file is something else, or damaged."""
    if data[:6] != b"\x7fELF\2\1":
        return None
    try:
        return _read(data)
    except struct.error:
        return None


def _read(data: bytes | mmap.mmap) -> Library | None:
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
        return None
    strings = None
    needed: list[int] = []
    run_paths: dict[int, None] = {}
    for at in range(dynamic[0], dynamic[0] + dynamic[1], 16):
        tag, value = struct.unpack_from("<QQ", data, at)
        if tag == _DT_NULL:
            break
        if tag == _DT_STRTAB:
            strings = value
        elif tag == _DT_NEEDED:
            needed.append(value)
        elif tag in (_DT_RPATH, _DT_RUNPATH):
            run_paths[value] = None
    for address, offset, in_file in loads:
        if strings is not None and address <= strings < address + in_file:
            start = strings - address + offset
            return Library(
                [_string(data, start + name) for name in needed],
                [(start + name, _string(data, start + name)) for name in run_paths],
                max(offset + in_file for _, offset, in_file in loads),
            )
    return None


def _string(data: bytes | mmap.mmap, start: int) -> bytes:
    end = data.find(b"\0", start)
    return data[start:end] if end >= 0 else b""
