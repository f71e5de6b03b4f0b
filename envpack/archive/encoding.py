"""The archive's format, and how its index is read and written: zstd frames of one tar stream, then the index.

    frame 0 | frame 1 | … | frame n-1 | skippable frame { index (zstd) | footer }

`tar --zstd -xf` reads the frames as one stream and never sees the index. envpack reads the footer, then the index, and
then any frame independently: a frame holds whole tar members, except that a file larger than a frame spans several. Each
frame ends with zstd's own checksum of its content; the index has a checksum of that and of the frame's head.

The footer, little-endian, is at the end of the file: a sha256 of the compressed index and of the rest of the footer; the
size of the compressed index; the size of the index; the offset of the skippable frame; the version; the magic number.
Version and magic number come last, so that every later version of envpack can find them.

Packing, staging and mpiboot import this module.
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
from envpack.archive.index import DIGEST_BYTES, PACK_AGAIN, Index
from envpack.common.places import host_name
from envpack.errors import ArchiveVersionError, CorruptArchiveError, NotAnArchiveError

if TYPE_CHECKING:
    from envpack.common.places import StrPath

VERSION = 2
MAGIC = b"envpack-idx\n"
SKIPPABLE_MAGIC = 0x184D2A5E

_SKIPPABLE = struct.Struct("<II")
_NUMBERS = struct.Struct("<QQQ")
_TAIL = struct.Struct("<I12s")
_COUNTS = struct.Struct("<7I")
FOOTER_BYTES = 32 + _NUMBERS.size + _TAIL.size
# Enough for the index of about 25,000 files, so that one read at the end of the file gets all of it.
_TAIL_READ_BYTES = 1 << 20
# The footer claims this size before anything can be checked; a crafted one must not take all memory.
_MAX_INDEX_BYTES = 1 << 28


def content_id(index: Index) -> str:
    """Return the pack id of an index: it names what a staged prefix holds.

    Times do not count, nor bytecode, nor frames and their compression: the same content always has the same id.
    """
    head, bytecode = slice(0, index.bytecode.start), len(index.bytecode)
    tail = slice(index.bytecode.stop, None)
    records = index.meta["relocations"]
    if bytecode:
        # As if there were none.
        records = [
            [member - bytecode if member >= tail.start else member, *record] for member, *record in records
        ]
    meta = [index.meta["kind"], index.meta["placeholders"], records]
    state = hashlib.sha256(b"envpack 2\n" + json.dumps(meta).encode())
    n_folders, n_files, n_hardlinks, n_symlinks, _ = index.counts
    blobs = [
        struct.pack("<4I", n_folders, n_files - bytecode, n_hardlinks, n_symlinks),
        index.digests[: head.stop * DIGEST_BYTES],
        b"\0".join(index.paths[head] + index.paths[tail]),
        b"\0".join(index.links.values()),
    ]
    for column in (index.modes, index.sizes):
        blobs += [_little(column[head]).tobytes(), _little(column[tail]).tobytes()]
    for blob in blobs:
        state.update(len(blob).to_bytes(8, "little") + blob)
    return state.hexdigest()


def encode_index(index: Index) -> bytes:
    """Return the skippable frame, with its footer, that ends the archive of an index."""
    header = json.dumps(index.meta, sort_keys=True).encode()
    parts = [_COUNTS.pack(len(header), len(index.frame_sizes), *index.counts), header]
    for column in (index.modes, index.mtimes_ns, index.sizes, index.offsets):
        parts.append(_little(column).tobytes())
    parts.append(index.digests)
    for column in (index.frame_sizes, index.frame_raw_sizes, index.frame_checks):
        parts.append(_little(column).tobytes())
    parts.append(index.frame_keys)
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
    """Read and check an archive's index, but none of its frames.

    Parameters
    ----------
    path : str or os.PathLike
        The archive.

    Returns
    -------
    Index
        The index; its content may be trusted to lie within the prefix.

    Raises
    ------
    NotAnArchiveError
        The file cannot be read, or has no index at its end.
    ArchiveVersionError
        Another version of envpack made it, in another format.
    CorruptArchiveError
        The index differs from its checksum, or contradicts itself or the file's size.
    HostileArchiveError
        A member would be written outside of the staged prefix.
    """
    path = Path(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise cannot_open(path, exc) from exc
    try:
        return read_index_fd(fd, path)
    finally:
        os.close(fd)


def cannot_open(path: Path, exc: OSError) -> NotAnArchiveError:
    """Return the error for an archive that cannot be opened."""
    return NotAnArchiveError(
        f"cannot open the archive {path} on {host_name()}: {exc.strerror}", "Check the path"
    )


def read_index_fd(fd: int, path: Path, known: Index | None = None) -> Index:
    """Read and check the index of an open archive, as `read_index` does.

    Parameters
    ----------
    fd : int
        The archive's descriptor.
    path : Path
        The archive, for messages.
    known : Index, optional
        An index that is returned if the archive still ends with it.
    """
    try:
        size = os.fstat(fd).st_size
        start = max(0, size - _TAIL_READ_BYTES)
        tail = _read_at(fd, size - start, start)
        wanted = _index_frame_size(tail, size, path)
        if wanted > len(tail):
            tail = _read_at(fd, wanted, size - wanted)
    except OSError as exc:
        raise NotAnArchiveError(
            f"cannot read the archive {path} on {host_name()}: {exc.strerror}", "Check the path"
        ) from exc
    frame = tail[-wanted:]
    return known if known is not None and known.raw == frame else decode_index(frame, path, file_size=size)


def _read_at(fd: int, size: int, offset: int) -> bytes:
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
            f"{path} does not end in an envpack index: it is not an archive of envpack, or was cut short "
            f"(it has {file_size} bytes)",
            PACK_AGAIN,
        )
    version, _ = _TAIL.unpack_from(tail, len(tail) - _TAIL.size)
    if version != VERSION:
        raise ArchiveVersionError(
            f"{path} has archive version {version}, but this envpack reads version {VERSION}", PACK_AGAIN
        )
    packed, raw, frames_end = _NUMBERS.unpack_from(tail, len(tail) - _TAIL.size - _NUMBERS.size)
    wanted = int(packed) + FOOTER_BYTES + _SKIPPABLE.size
    if frames_end + wanted != file_size or raw > _MAX_INDEX_BYTES:
        raise CorruptArchiveError(
            f"{path}: the index says {frames_end + wanted} bytes, but the file has {file_size}: "
            "it was cut short, extended or damaged",
            PACK_AGAIN,
        )
    return wanted


def index_start(path: StrPath) -> int:
    """Return the offset of an archive's index in bytes, where its last frame ends. The value is not checked."""
    with Path(path).open("rb") as file:
        file.seek(-(_NUMBERS.size + _TAIL.size), os.SEEK_END)
        return int(_NUMBERS.unpack(file.read(_NUMBERS.size))[2])


def decode_index(frame: bytes, path: Path, *, file_size: int | None = None) -> Index:
    """Check and parse the skippable frame that ends an archive.

    Parameters
    ----------
    frame : bytes
        The last bytes of the archive, from the skippable frame's start.
    path : Path
        The archive, for messages.
    file_size : int, optional
        The archive's size in bytes, if it is known.

    Raises
    ------
    NotAnArchiveError, ArchiveVersionError, CorruptArchiveError, HostileArchiveError
        As for `read_index`.
    """
    size = file_size if file_size is not None else len(frame)
    if file_size is None and len(frame) >= FOOTER_BYTES:
        # Of a stream, only the index itself says how many bytes the frames have.
        size += _NUMBERS.unpack_from(frame, len(frame) - _TAIL.size - _NUMBERS.size)[2]
    wanted = _index_frame_size(frame, size, path)
    content = frame[_SKIPPABLE.size :]
    packed, checksum = content[:-FOOTER_BYTES], content[-FOOTER_BYTES : 32 - FOOTER_BYTES]
    tail = content[32 - FOOTER_BYTES :]
    good = hashlib.sha256(packed + tail).digest() == checksum
    if not good or frame[: _SKIPPABLE.size] != _SKIPPABLE.pack(SKIPPABLE_MAGIC, wanted - _SKIPPABLE.size):
        raise CorruptArchiveError(
            f"{path}: the index differs from its checksum: the archive is damaged", PACK_AGAIN
        )
    _, raw_size, frames_end = _NUMBERS.unpack_from(tail)
    try:
        raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=raw_size)
        index = _parse(raw, raw_size)
        check_meta(index.meta)
        pack_id = content_id(index)
    except (zstandard.ZstdError, struct.error, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CorruptArchiveError(f"{path}: the index cannot be read: {exc}", PACK_AGAIN) from exc
    if pack_id != index.meta.get("pack_id") or sum(index.frame_sizes) != frames_end:
        raise CorruptArchiveError(f"{path}: the index contradicts its own pack id", PACK_AGAIN)
    index.path = path
    index.raw = frame
    check_members(index, path)
    return index


def _parse(raw: bytes, size: int) -> Index:
    if len(raw) != size:
        raise ValueError("wrong size")
    index = Index()
    header_size, frames, *counts = _COUNTS.unpack_from(raw)
    index.set_counts(*counts)
    members = index.symlinks.stop
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
    index.frame_keys = take(frames * DIGEST_BYTES)
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
