"""Relocation records: where a member names the prefix that it was packed from. Packing makes them, staging applies them.

The index has them under `relocations`, one list for each such member, which begins with the member's number:

    [member, "text", [offset, p, offset, p, …], first line or null]
    [member, "binary", p, room, [end, offset, offset, …], [end, …], …]
    [member, "bytes", [offset, old, new], …]
    [member, "link", p]

`p` is a number in the index's `placeholders`. "text": a placeholder stands at each offset; the first line (`#!…`) is
replaced as a whole, as the kernel limits its length. "binary": a span is a string that runs from its first offset to the
NUL byte at `end`; each placeholder in it may grow by `room` bytes, as many NUL bytes follow. The file keeps its size:
growth takes NUL bytes after `end`, and NUL bytes fill what shrinks. "bytes": the bytes at an offset are replaced by as
many others, both as latin-1. "link": the symlink's target begins with the placeholder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    # A record without its member's number; empty if the member needs no relocation.
    Record = list[object]

TEXT, BINARY, BYTES, LINK = "text", "binary", "bytes", "link"


def text_record(places: Iterable[tuple[int, int]], first_line: str | None) -> Record:
    """Return the record of a text: pairs (offset, placeholder), and its first line if that is to be replaced."""
    return [TEXT, [number for place in places for number in place], first_line]


def binary_record(placeholder: int, room: int, spans: list[list[int]]) -> Record:
    """Return the record of a binary: for each span its end, then the offsets of the placeholder."""
    return [BINARY, placeholder, room, *spans]


def bytes_record(changes: Iterable[tuple[int, bytes, bytes]]) -> Record:
    """Return the record of a file some of whose bytes change: offset, old bytes, new bytes of the same length."""
    return [BYTES, *([at, old.decode("latin-1"), new.decode("latin-1")] for at, old, new in changes)]


def link_record(placeholder: int) -> Record:
    """Return the record of a symlink whose target begins with a placeholder."""
    return [LINK, placeholder]
