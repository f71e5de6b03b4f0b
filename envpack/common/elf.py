"""Reads the headers of a Linux library (ELF, 64 bits, little-endian): elf(5).

Every room may import this module; it imports only struct.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import mmap

# How much of a file to read so that all of its program headers are included.
HEAD_BYTES = 4096
# ELF, 64 bits, little-endian.
_MAGIC = b"\x7fELF\2\1"
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


def loaded_bytes(head: bytes | mmap.mmap) -> int:
    """Return `Library.loaded_bytes`, from the first HEAD_BYTES bytes; 0 if the file is something else, or damaged."""
    if head[:6] != _MAGIC:
        return 0
    try:
        return max(
            (offset + in_file for kind, offset, _, in_file in _segments(head) if kind == _PT_LOAD), default=0
        )
    except struct.error:
        return 0


def read_library(data: bytes | mmap.mmap) -> Library | None:
    """Return the description of a library; None if the file is something else, or damaged."""
    if data[:6] != _MAGIC:
        return None
    try:
        return _read(data)
    except struct.error:
        return None


def _segments(data: bytes | mmap.mmap) -> list[tuple[int, int, int, int]]:
    """Return the kind, offset, address and length of each segment."""
    (program_headers,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQ", data, program_headers + n * size) for n in range(count)]
    return [(kind, offset, address, in_file) for kind, _, offset, address, _, in_file in headers]


def _read(data: bytes | mmap.mmap) -> Library | None:
    segments = _segments(data)
    loads = [(address, offset, in_file) for kind, offset, address, in_file in segments if kind == _PT_LOAD]
    dynamic = next(((offset, in_file) for kind, offset, _, in_file in segments if kind == _PT_DYNAMIC), None)
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
                loaded_bytes(data),
            )
    return None


def _string(data: bytes | mmap.mmap, start: int) -> bytes:
    end = data.find(b"\0", start)
    return data[start:end] if end >= 0 else b""
