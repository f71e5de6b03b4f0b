"""Make packed bytes name the staged prefix, while they are in memory. The stager, the extractor and `verify` import this.

The result equals what `conda-unpack` leaves, except for the list in `envpack.pack.scan`. A record (`envpack.archive.
relocations`) says where the old prefix stands in a file, so staging searches for nothing, and a file that spans several
frames can be written in any order.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from envpack.archive.index import PACK_AGAIN
from envpack.archive.relocations import BINARY, LINK, TEXT
from envpack.common.places import STAGE_ROOT_VARIABLE
from envpack.errors import CorruptArchiveError, PrefixTooLongError

if TYPE_CHECKING:
    from envpack.archive.index import Index

    # Start and end of the packed bytes that change, their replacement, and the packed bytes themselves.
    Edit = tuple[int, int, bytes, bytes]

# The shortest limit in use: Linux before 5.1 silently cuts a first line after 127 bytes.
SHEBANG_BYTES = 127


class Relocation:
    """All edits that a staged prefix needs.

    Parameters
    ----------
    index : Index
        The archive's index, with the relocation records.
    prefix : str or os.PathLike
        The staged prefix.

    Attributes
    ----------
    edits : dict[int, list[Edit]]
        Member number -> the edits of a file, in the order of their offsets.
    links : dict[int, bytes]
        Member number -> the new target of a symlink.

    Raises
    ------
    PrefixTooLongError
        A binary has no room for `prefix`.
    CorruptArchiveError
        The records contradict the index.
    """

    def __init__(self, index: Index, prefix: str | os.PathLike[str]) -> None:
        new = os.fsencode(prefix)
        # Each placeholder, and what replaces it.
        pairs = [(os.fsencode(old), new + os.fsencode(suffix)) for old, suffix in index.meta["placeholders"]]
        self.edits: dict[int, list[Edit]] = {}
        self.links: dict[int, bytes] = {}
        try:
            for member, mode, *rest in index.meta["relocations"]:
                if mode == LINK:
                    old, put = pairs[rest[0]]
                    self.links[member] = put + index.links[member][len(old) :]
                    continue
                if mode == TEXT:
                    edits = _text(pairs, *rest)
                elif mode == BINARY:
                    edits = _binary(pairs, *rest)
                else:
                    edits = _bytes(rest)
                _check(edits, index.sizes[member])
                self.edits[member] = edits
        except (IndexError, KeyError, TypeError, ValueError) as exc:
            raise CorruptArchiveError(
                f"{index.path}: the relocation records contradict the index: {exc!r}", PACK_AGAIN
            ) from exc

    def size(self, index: Index, member: int) -> int:
        """Return a file's size in bytes once it is staged."""
        edits = self.edits.get(member)
        size = index.sizes[member]
        return size + sum(len(put) - (end - start) for start, end, put, _ in edits) if edits else size


def apply(data: memoryview | bytes, edits: list[Edit]) -> bytes:
    """Return a whole file's bytes with its edits made."""
    pieces: list[memoryview | bytes] = []
    at = 0
    for start, end, put, _ in edits:
        pieces += (data[at:start], put)
        at = end
    pieces.append(data[at:])
    return b"".join(pieces)


def apply_part(part_start: int, data: memoryview, edits: list[Edit]) -> tuple[int, bytes | memoryview]:
    """Return the offset in the staged file of one part of a file, and the part's bytes with its edits made.

    An edit belongs to the part that holds its first byte; other parts omit the bytes that it replaces.

    Parameters
    ----------
    part_start : int
        The part's offset in the packed file.
    data : memoryview
        The part's packed bytes.
    edits : list[Edit]
        All edits of the file.
    """
    part_end = part_start + len(data)
    pieces: list[memoryview | bytes] = []
    at = part_start
    shift = 0
    offset = None
    for start, end, put, _ in edits:
        if start >= part_end:
            break
        if at < start:
            offset = at + shift if offset is None else offset
            pieces.append(data[at - part_start : start - part_start])
            at = start
        if start >= part_start:
            offset = start + shift if offset is None else offset
            pieces.append(put)
        shift += len(put) - (end - start)
        at = max(at, end)
    if at < part_end:
        offset = at + shift if offset is None else offset
        pieces.append(data[at - part_start :])
    return offset or 0, pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _text(pairs: list[tuple[bytes, bytes]], places: list[int], first_line: str | None) -> list[Edit]:
    edits: list[Edit] = []
    rest_at = 0
    if first_line is not None:
        line = first_line.encode("latin-1")
        edits.append((0, len(line), shebang(line, pairs), line))
        rest_at = len(line)
    for offset, placeholder in zip(places[::2], places[1::2], strict=True):
        if offset >= rest_at:
            old, new = pairs[placeholder]
            edits.append((offset, offset + len(old), new, old))
    return edits


def _binary(pairs: list[tuple[bytes, bytes]], placeholder: int, room: int, *spans: list[int]) -> list[Edit]:
    old, new = pairs[placeholder]
    growth = len(new) - len(old)
    if growth > room:
        raise PrefixTooLongError(
            f"the staged prefix {os.fsdecode(new)} has {len(new)} bytes, but a binary of this environment has "
            f"room for {len(old) + room}",
            f"Choose a staging root with a shorter path: --root or {STAGE_ROOT_VARIABLE}",
        )
    edits: list[Edit] = []
    for end, *offsets in spans:
        edits.extend((offset, offset + len(old), new, old) for offset in offsets)
        taken, filled = max(0, growth) * len(offsets), max(0, -growth) * len(offsets)
        edits.append((end, end + taken, bytes(filled), bytes(taken)))
    return edits


def _bytes(changes: list[Any]) -> list[Edit]:
    return [
        (offset, offset + len(was), put.encode("latin-1"), was.encode("latin-1"))
        for offset, was, put in changes
    ]


def _check(edits: list[Edit], size: int) -> None:
    at = 0
    for start, end, _, _ in edits:
        if not at <= start <= end <= size:
            raise ValueError(f"edit at {start} to {end} of {size} bytes")
        at = end


def shebang(line: bytes, pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Return a script's first line, or first lines, that start the staged interpreter, however long its path is.

    Parameters
    ----------
    line : bytes
        The packed first line: `#!`, blanks if any, a placeholder, the rest of the interpreter's path, options if any.
    pairs : list[tuple[bytes, bytes]]
        Each placeholder, and what replaces it.
    """
    command = line[2:].lstrip(b" \t")
    placeholder, new = max(
        (p for p in pairs if command.startswith(p[0] + b"/")), key=lambda pair: len(pair[0])
    )
    tail, _, options = command[len(placeholder) :].partition(b" ")
    options = options.strip()
    plain = line[: len(line) - len(command)] + new + command[len(placeholder) :]
    # The kernel counts the line feed.
    if len(plain) < SHEBANG_BYTES and not any(byte in b" \t\n" for byte in new):
        return plain
    program = tail.rpartition(b"/")[2]
    if not program.startswith((b"python", b"pypy")):
        return b"#!/usr/bin/env " + (b"-S " if options else b"") + program + (options and b" " + options)
    quoted = new + tail
    for special in (b"\\", b'"', b"$", b"`"):
        quoted = quoted.replace(special, b"\\" + special)
    # For sh a command, for Python a string. pip writes such scripts in the same form.
    return b"#!/bin/sh\n'''exec' \"" + quoted + b'" ' + (options and options + b" ") + b"\"$0\" \"$@\"\n' '''"
