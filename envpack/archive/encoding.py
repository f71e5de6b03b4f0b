"""The archive's format: many independent zstd frames of one tar stream, then an index in a skippable frame.

    frame 0 | frame 1 | … | frame n-1 | skippable frame { index (zstd) | footer }

`tar --zstd -xf` reads the frames as one stream and never sees the index. envpack reads the footer, then the index, and
then any frame by itself: each holds whole tar members, but for files larger than a frame, which span several. zstd's own
checksum of its content ends each frame; the index has that checksum, and the frame's head, once more.

Footer, little-endian, the last bytes of the file: sha256 of everything in the skippable frame before it and of the
numbers that follow, in that order; size of the compressed index; size of the index; where the skippable frame starts;
version; magic. Version and magic come last, so that every later version can find and name them.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

from envpack.archive.checks import check_members, check_meta
from envpack.archive.index import DIGEST_BYTES, Index
from envpack.errors import ArchiveVersionError, CorruptArchiveError, NotAnArchiveError

if TYPE_CHECKING:
    from envpack.common.places import StrPath

VERSION = 1
MAGIC = b"envpack-idx\n"
SKIPPABLE_MAGIC = 0x184D2A5E

_SKIPPABLE = struct.Struct("<II")
_NUMBERS = struct.Struct("<QQQ")
_TAIL = struct.Struct("<I12s")
_COUNTS = struct.Struct("<6I")
FOOTER_BYTES = 32 + _NUMBERS.size + _TAIL.size
# Enough for the index of about 25,000 files, so that one read of the file's tail fetches it all.
_TAIL_READ_BYTES = 1 << 20
# An index says how large it is before it can be checked; a crafted one must not take all memory.
_MAX_INDEX_BYTES = 1 << 28


def content_id(index: Index) -> str:
    """Return the pack id: what the staged prefix will hold, whatever the frames and their compression."""
    meta = {key: index.meta.get(key) for key in ("compile", "kind", "placeholders", "python", "relocations")}
    state = hashlib.sha256(b"envpack 1\n" + json.dumps(meta, sort_keys=True).encode())
    for column in (index.modes, index.mtimes_ns, index.sizes):
        state.update(_little(column).tobytes())
    counts = struct.pack("<4I", *index.counts)
    for blob in (counts, index.digests, b"\0".join(index.paths), b"\0".join(index.links.values())):
        state.update(len(blob).to_bytes(8, "little") + blob)
    return state.hexdigest()


def encode_index(index: Index) -> bytes:
    """Return the skippable frame, footer included, that ends an archive with these frames."""
    header = json.dumps(index.meta, sort_keys=True).encode()
    parts = [_COUNTS.pack(len(header), len(index.frame_sizes), *index.counts), header]
    for column in (index.modes, index.mtimes_ns, index.sizes, index.offsets):
        parts.append(_little(column).tobytes())
    parts.append(index.digests)
    for column in (index.frame_sizes, index.frame_raw_sizes, index.frame_checks):
        parts.append(_little(column).tobytes())
    parts.extend(path + b"\0" for path in index.paths)
    parts.extend(link + b"\0" for link in index.links.values())
    raw = b"".join(parts)
    packed = zstandard.ZstdCompressor(level=9, write_checksum=True).compress(raw)
    numbers = _NUMBERS.pack(len(packed), len(raw), sum(index.frame_sizes))
    tail = _TAIL.pack(VERSION, MAGIC)
    checksum = hashlib.sha256(packed + numbers + tail).digest()
    content = packed + checksum + numbers + tail
    return _SKIPPABLE.pack(SKIPPABLE_MAGIC, len(content)) + content


def read_index(path: StrPath) -> Index:
    """Read and check an archive's index; the frames are not read.

    Parameters
    ----------
    path : str or os.PathLike
        The archive.

    Returns
    -------
    Index

    Raises
    ------
    NotAnArchiveError
        No index at the end of the file: it is something else, or was cut short.
    ArchiveVersionError
        Made by a version of envpack with another format.
    CorruptArchiveError
        The index differs from its checksum, or contradicts itself or the file's size.
    HostileArchiveError
        A member would be written outside of the staged prefix.
    """
    path = Path(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise NotAnArchiveError(f"cannot open the archive {path}: {exc.strerror}") from exc
    try:
        return read_index_fd(fd, path)
    finally:
        os.close(fd)


def read_index_fd(fd: int, path: Path) -> Index:
    """Read the index of an archive that is open already; `path` is for messages."""
    try:
        size = os.fstat(fd).st_size
        start = max(0, size - _TAIL_READ_BYTES)
        tail = _pread(fd, size - start, start)
        wanted = _index_frame_size(tail, size, path)
        if wanted > len(tail):
            tail = _pread(fd, wanted, size - wanted)
    except OSError as exc:
        raise NotAnArchiveError(f"cannot read the archive {path}: {exc.strerror}") from exc
    return decode_index(tail[-wanted:], path, file_size=size)


def _pread(fd: int, size: int, offset: int) -> bytes:
    parts = []
    while size > 0:
        part = os.pread(fd, size, offset)
        if not part:
            break
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return b"".join(parts)


def _index_frame_size(tail: bytes, file_size: int, path: Path) -> int:
    if len(tail) < FOOTER_BYTES + _SKIPPABLE.size or tail[-len(MAGIC) :] != MAGIC:
        raise NotAnArchiveError(
            f"{path} does not end in an envpack index: it is no archive of envpack's, or was cut short "
            f"(it has {file_size} bytes); pack the environment again"
        )
    version, _ = _TAIL.unpack_from(tail, len(tail) - _TAIL.size)
    if version != VERSION:
        raise ArchiveVersionError(
            f"{path} has archive version {version}, this envpack reads version {VERSION}: "
            "pack the environment again with the envpack that is to stage it"
        )
    packed, raw, frames_end = _NUMBERS.unpack_from(tail, len(tail) - _TAIL.size - _NUMBERS.size)
    wanted = int(packed) + FOOTER_BYTES + _SKIPPABLE.size
    if frames_end + wanted != file_size or raw > _MAX_INDEX_BYTES:
        raise CorruptArchiveError(
            f"{path}: its index says {frames_end + wanted} bytes, the file has {file_size}: "
            "it was cut short, extended or damaged; pack the environment again"
        )
    return wanted


def decode_index(frame: bytes, path: Path, *, file_size: int | None = None) -> Index:
    """Check and parse the skippable frame that ends an archive.

    Parameters
    ----------
    frame : bytes
        The last bytes of the archive, from the skippable frame's start.
    path : Path
        For messages.
    file_size : int, optional
        The archive's size in bytes, where it is known.
    """
    size = file_size if file_size is not None else len(frame)
    if file_size is None and len(frame) >= FOOTER_BYTES:
        # From a stream: all that is known of the frames is what the index says of them.
        size += _NUMBERS.unpack_from(frame, len(frame) - _TAIL.size - _NUMBERS.size)[2]
    wanted = _index_frame_size(frame, size, path)
    content = frame[_SKIPPABLE.size :]
    packed, checksum = content[:-FOOTER_BYTES], content[-FOOTER_BYTES : 32 - FOOTER_BYTES]
    tail = content[32 - FOOTER_BYTES :]
    good = hashlib.sha256(packed + tail).digest() == checksum
    if not good or frame[: _SKIPPABLE.size] != _SKIPPABLE.pack(SKIPPABLE_MAGIC, wanted - _SKIPPABLE.size):
        raise CorruptArchiveError(
            f"{path}: the index differs from its checksum: the archive is damaged; pack the environment again"
        )
    _, raw_size, frames_end = _NUMBERS.unpack_from(tail)
    try:
        raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=raw_size)
        index = _parse(raw, raw_size)
        check_meta(index.meta)
        pack_id = content_id(index)
    except (zstandard.ZstdError, struct.error, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CorruptArchiveError(f"{path}: the index cannot be read: {exc}") from exc
    if pack_id != index.meta.get("pack_id") or sum(index.frame_sizes) != frames_end:
        raise CorruptArchiveError(f"{path}: the index contradicts its own pack id")
    index.path = path
    index.raw = frame
    check_members(index, path)
    return index


def _parse(raw: bytes, size: int) -> Index:
    if len(raw) != size:
        raise ValueError("wrong size")
    index = Index()
    header_size, frames, *counts = _COUNTS.unpack_from(raw)
    members = sum(counts)
    index.set_counts(*counts)
    at = _COUNTS.size
    index.meta = json.loads(raw[at : at + header_size])
    at += header_size

    def take(count: int) -> bytes:
        nonlocal at
        if count > len(raw) - at:
            raise ValueError("too short")
        at += count
        return raw[at - count : at]

    def column(typecode: str, count: int) -> array[int]:
        numbers = array(typecode)
        numbers.frombytes(take(count * numbers.itemsize))
        return _little(numbers)

    index.modes = column("H", members)
    index.mtimes_ns = column("q", members)
    index.sizes = column("Q", members)
    index.offsets = column("Q", members)
    index.digests = take(members * DIGEST_BYTES)
    index.frame_sizes = column("I", frames)
    index.frame_raw_sizes = column("I", frames)
    index.frame_checks = column("I", frames)
    names = raw[at:].split(b"\0")
    linking = range(index.hardlinks.start, members)
    if names.pop() != b"" or len(names) != members + len(linking):
        raise ValueError("as many names as members expected")
    index.paths = names[:members]
    index.links = dict(zip(linking, names[members:], strict=True))
    return index


def _little(numbers: array[int]) -> array[int]:
    if sys.byteorder == "little":
        return numbers
    swapped = array(numbers.typecode, numbers)
    swapped.byteswap()
    return swapped
