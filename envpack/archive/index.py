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
import zlib
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zstandard

from envpack.archive.checks import OWN_FOLDER, check_members, check_meta, show
from envpack.errors import ArchiveVersionError, CorruptArchiveError, NotAnArchiveError

if TYPE_CHECKING:
    from envpack.common.places import StrPath

VERSION = 1
MAGIC = b"envpack-idx\n"
SKIPPABLE_MAGIC = 0x184D2A5E
# What one decodes and writes stays in its cache meanwhile: faster than 4 MB, for a few more bytes.
FRAME_BYTES = 1 << 20
DIGEST_BYTES = 16

_SKIPPABLE = struct.Struct("<II")
_NUMBERS = struct.Struct("<QQQ")
_TAIL = struct.Struct("<I12s")
_COUNTS = struct.Struct("<6I")
FOOTER_BYTES = 32 + _NUMBERS.size + _TAIL.size
# Enough for the index of about 25,000 files, so that one read of the file's tail fetches it all.
_TAIL_READ_BYTES = 1 << 20
# An index says how large it is before it can be checked; a crafted one must not take all memory.
_MAX_INDEX_BYTES = 1 << 28


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """Return the first 16 bytes of sha256: enough to name content, half the index's size."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def frame_check(packed: bytes | bytearray | memoryview) -> int:
    """Return a checksum of a frame's head and of its last bytes, which are zstd's checksum of its content (RFC 8878).

    Hashing all of it would cost a node a tenth of its time, or half where its CPU has no instructions for that.
    """
    return zlib.crc32(packed[-4:], zlib.crc32(packed[:32]))


class Index:
    """What an archive holds: one column per property, one entry per member, in the order of the tar stream.

    Columns rather than a record per member: a node parses 25,000 members in a few milliseconds.

    Attributes
    ----------
    meta : dict
        `name`, `kind` ("conda" or "venv"), `prefix`, `python`, `placeholders`, `relocations`, `compile`, …
    paths : list[bytes]
        Relative to the prefix.
    folders, files, hardlinks, symlinks : range
        Member numbers: all folders come first, then all files, and so on. There are no other kinds.
    modes, mtimes_ns, sizes, offsets : array
        `offsets` are those of a file's content in the uncompressed tar stream.
    digests : bytes
        16 bytes per member, of the file's content as packed; of a file of more than `part_bytes`, of the digests of
        its parts.
    links : dict[int, bytes]
        Member number -> a symlink's target, or the path a hard link is another name of.
    frame_sizes, frame_raw_sizes : array
        Bytes per frame, compressed and not.
    frame_checks : array
        `frame_check` of each frame.
    """

    __slots__ = (
        "digests", "files", "folders", "frame_checks", "frame_raw_sizes", "frame_sizes", "hardlinks", "links",
        "meta", "modes", "mtimes_ns", "offsets", "path", "paths", "raw", "sizes", "symlinks",
    )  # fmt: skip

    def __init__(self) -> None:
        self.path: Path | None = None
        self.raw = b""
        self.meta: dict[str, Any] = {}
        self.paths: list[bytes] = []
        self.folders = self.files = self.hardlinks = self.symlinks = range(0)
        self.modes = array("H")
        self.mtimes_ns = array("q")
        self.sizes = array("Q")
        self.offsets = array("Q")
        self.digests = b""
        self.links: dict[int, bytes] = {}
        self.frame_sizes = array("I")
        self.frame_raw_sizes = array("I")
        self.frame_checks = array("I")

    def __len__(self) -> int:
        return len(self.paths)

    def set_counts(self, *counts: int) -> None:
        """Number the members: so many folders, files, hard links and symlinks."""
        ends = [sum(counts[:n]) for n in range(5)]
        self.folders, self.files, self.hardlinks, self.symlinks = map(range, ends, ends[1:])

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """How many folders, files, hard links and symlinks there are."""
        return len(self.folders), len(self.files), len(self.hardlinks), len(self.symlinks)

    @property
    def pack_id(self) -> str:
        return str(self.meta["pack_id"])

    @property
    def name(self) -> str:
        """The environment's name, safe as part of a file name."""
        return str(self.meta["name"])

    @property
    def kind(self) -> str:
        return str(self.meta["kind"])

    @property
    def prefix(self) -> str:
        """The prefix that was packed."""
        return str(self.meta["prefix"])

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, as packed."""
        return sum(self.sizes)

    @property
    def archive_bytes(self) -> int:
        """Bytes of all frames: what a stager has to read, but for the index."""
        return sum(self.frame_sizes)

    def digest_of(self, member: int) -> bytes:
        return self.digests[member * DIGEST_BYTES : (member + 1) * DIGEST_BYTES]

    def frame_starts(self) -> list[int]:
        """Return where each frame starts in the archive, and after the last one where the index does."""
        starts = [0]
        for size in self.frame_sizes:
            starts.append(starts[-1] + size)
        return starts


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


__all__ = [
    "DIGEST_BYTES", "FRAME_BYTES", "OWN_FOLDER", "VERSION", "Index",
    "content_id", "decode_index", "digest", "encode_index", "frame_check", "read_index", "read_index_fd", "show",
]  # fmt: skip
