"""Cut members into frames, read and compress them: in several threads, in the archive's order, in bounded memory.

Only `envpack.pack.archive_writer` imports this module.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import zstandard

from envpack.archive.index import DIGEST_BYTES, FRAME_BYTES, digest, frame_check
from envpack.pack.members import (
    BLOCK,
    FILE,
    SYMLINK,
    Member,
    header_bytes,
    newest_change_ns,
    padding,
    stamp,
    tar_header,
)
from envpack.pack.walk import changed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from envpack.pack.older import OlderArchive
    from envpack.pack.scan import Scanner

# A tar archive ends with two blocks of NULs.
_END_BYTES = 1024
# A frame ends, once it is half full, before a member whose path says so: on average after as many bytes more.
_CUT_BYTES = FRAME_BYTES // 8
# One thread copies so many unchanged frames in a row.
_COPIED_AT_ONCE = 8


@dataclass(slots=True)
class Piece:
    """A part of a member, or all of it: its header if `start` is 0, and `length` bytes of its content from `start`."""

    member: Member
    start: int
    length: int


@dataclass(slots=True)
class Frame:
    """A compressed frame.

    Attributes
    ----------
    packed : bytes
        Its compressed bytes, until they are written.
    packed_digest : bytes
        The digest of its compressed bytes.
    raw_size : int
        Its uncompressed size, in bytes.
    key : bytes
        Its entry in the index's `frame_keys`.
    sources : bytes
        What names its sources: see `envpack.pack.older`.
    copied : bool
        It was copied from an older archive.
    packed_size, check : int, int
        The size and `frame_check` of its compressed bytes.
    """

    packed: bytes
    packed_digest: bytes
    raw_size: int
    key: bytes
    sources: bytes
    copied: bool
    packed_size: int = 0
    check: int = 0

    def __post_init__(self) -> None:
        self.packed_size = len(self.packed)
        self.check = frame_check(self.packed)


def cut(members: Iterable[Member]) -> Iterator[list[Piece]]:
    """Yield the pieces of each frame, and set each member's offset in the tar stream.

    Where a frame ends depends on the members near it alone, so that a new member changes only the frames around it.
    """
    pieces: list[Piece] = []
    filled = 0
    at = 0
    for member in members:
        size = member.size if member.kind == FILE else 0
        header = header_bytes(member)
        blocks = header + size + -size % BLOCK
        member.offset = at + header
        at += blocks
        chosen = filled > FRAME_BYTES // 2 and zlib.crc32(member.path) % _CUT_BYTES < blocks
        if pieces and (chosen or filled + blocks > FRAME_BYTES):
            yield pieces
            pieces, filled = [], 0
        if size <= FRAME_BYTES:
            pieces.append(Piece(member, 0, size))
            filled += blocks
            continue
        for start in range(0, size, FRAME_BYTES):
            yield [Piece(member, start, min(FRAME_BYTES, size - start))]
    if pieces:
        yield pieces


class FrameWriter:
    """Writes frames to an open file.

    Parameters
    ----------
    file : BinaryIO
        The archive.
    level : int
        zstd's compression level.
    jobs : int
        Number of threads.
    scanner : Scanner
        Makes the relocation records.
    older : OlderArchive, optional
        The archive from which unchanged frames are copied.
    progress : callable, optional
        Called with the uncompressed bytes written since the last call.

    Attributes
    ----------
    frames : list[Frame]
        What was written, without the compressed bytes.
    """

    def __init__(
        self,
        file: BinaryIO,
        level: int,
        jobs: int,
        scanner: Scanner,
        older: OlderArchive | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._file = file
        self._level = level
        self._jobs = jobs
        self._scanner = scanner
        self._older = older
        self._progress = progress
        self.frames: list[Frame] = []

    def write(self, members: Iterable[Member]) -> None:
        """Write all members in order, and the end of the tar stream."""
        pending: deque[Future[list[Frame]]] = deque()
        with ThreadPoolExecutor(self._jobs) as pool:

            def submit(*task: Any) -> None:
                pending.append(pool.submit(*task))
                if len(pending) > 2 * self._jobs:
                    self._put(pending.popleft().result())

            try:
                unchanged: list[tuple[int, bytes]] = []
                for pieces in cut(members):
                    sources = digest(
                        b"".join(b"%d %b" % (piece.start, stamp(piece.member)) for piece in pieces)
                    )
                    number = self._unchanged(pieces, sources)
                    if number is not None:
                        unchanged.append((number, sources))
                    if unchanged and (number is None or len(unchanged) == _COPIED_AT_ONCE):
                        submit(self._copied, unchanged)
                        unchanged = []
                    if number is None:
                        submit(self._made, pieces, sources)
                if unchanged:
                    submit(self._copied, unchanged)
                while pending:
                    self._put(pending.popleft().result())
            except BaseException:
                for future in pending:
                    future.cancel()
                raise
        self._put([self._compressed(bytes(_END_BYTES), bytes(DIGEST_BYTES), bytes(DIGEST_BYTES))])

    def _put(self, frames: list[Frame]) -> None:
        for frame in frames:
            self._file.write(frame.packed)
            frame.packed = b""
            self.frames.append(frame)
            if self._progress is not None:
                self._progress(frame.raw_size)

    def _unchanged(self, pieces: list[Piece], sources: bytes) -> int | None:
        """Return the older archive's frame that was made from the same sources, and set what is known of its members."""
        newest_ns = max(newest_change_ns(piece.member) for piece in pieces)
        number = self._older.frame_of_sources(sources, newest_ns) if self._older else None
        if self._older is not None and number is not None:
            for piece in pieces:
                self._older.restore(piece.member, self._scanner)
        return number

    def _copied(self, frames: list[tuple[int, bytes]]) -> list[Frame]:
        older = self._older
        assert older is not None
        index = older.index
        return [
            Frame(
                older.packed(n),
                older.packed_digest(n),
                index.frame_raw_sizes[n],
                index.key_of(n),
                sources,
                copied=True,
            )
            for n, sources in frames
        ]

    def _made(self, pieces: list[Piece], sources: bytes) -> list[Frame]:
        parts: list[bytes] = []
        state = hashlib.sha256()
        for piece in pieces:
            member = piece.member
            start = tar_header(member) if piece.start == 0 else b"%d" % piece.start
            state.update(start)
            if piece.start == 0:
                parts.append(start)
            if member.kind == FILE:
                data = self._read(piece)
                parts.append(data)
                state.update(self._note(piece, data))
                if piece.start + piece.length == member.size:
                    parts.append(padding(member.size))
            elif member.kind == SYMLINK and member.relocation != "none":
                member.record = self._scanner.link(member.link) or []
        raw = b"".join(parts)
        key = state.digest()[:DIGEST_BYTES]
        number = self._older.frame_of_content(key) if self._older else None
        if number is not None:
            return self._copied([(number, sources)])
        return [self._compressed(raw, key, sources)]

    def _compressed(self, raw: bytes, key: bytes, sources: bytes) -> Frame:
        compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=True, write_content_size=True)
        packed = compressor.compress(raw)
        return Frame(packed, digest(packed), len(raw), key, sources, copied=False)

    def _read(self, piece: Piece) -> bytes:
        if piece.member.data is not None:
            return piece.member.data[piece.start : piece.start + piece.length]
        with _opened(piece.member) as fd:
            return _read_piece(fd, piece)

    def _note(self, piece: Piece, data: bytes) -> bytes:
        """Set the digest and the relocation record of a piece in its member; return the digest."""
        member = piece.member
        named = digest(data)
        if piece.length == member.size:
            member.digest = named
            member.edited = bool(member.package_digests) and named not in member.package_digests
            member.record = self._scanner.record(member, data)
        else:
            member.parts[piece.start] = named
            if self._hints(piece, data):
                member.suspect = True
        return named

    def _hints(self, piece: Piece, data: bytes) -> bool:
        """Tell whether a part of a large file, or its border with the part before, holds a text to be relocated."""
        member = piece.member
        texts = self._scanner.texts(member)
        if not texts:
            return False
        if member.data is None and piece.start:
            before = min(max(map(len, texts)), piece.start)
            with _opened(member) as fd:
                data = _read_piece(fd, Piece(member, piece.start - before, before)) + data
        return member.data is not None or any(text in data for text in texts)

    def finish(self, members: list[Member]) -> None:
        """Set what is known of members that span frames when all of their parts are; call it after `write`."""
        for member in members:
            if not member.parts:
                continue
            member.digest = digest(b"".join(part for _, part in sorted(member.parts.items())))
            if member.data is not None:
                member.record = self._scanner.record(member, member.data)
            else:
                with _opened(member) as fd, mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as whole:
                    if member.package_digests:
                        whole_digest = hashlib.sha256(whole).digest()[:DIGEST_BYTES]
                        member.edited = whole_digest not in member.package_digests
                    if member.suspect:
                        member.record = self._scanner.record(member, whole)
                    else:
                        self._scanner.check_run_paths(member, whole)


@contextlib.contextmanager
def _opened(member: Member) -> Iterator[int]:
    """Open a member's source; check at the end that its size and time are still those of the member.

    Raises
    ------
    BrokenEnvironmentError
        It has changed.
    OSError
        It cannot be read; the error names it.
    """
    fd = os.open(member.source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
        info = os.fstat(fd)
        if info.st_size != member.size or info.st_mtime_ns != member.mtime_ns:
            raise changed(member.source)
    except OSError as exc:
        exc.filename = exc.filename or member.source
        raise
    finally:
        os.close(fd)


def _read_piece(fd: int, piece: Piece) -> bytes:
    data = os.pread(fd, piece.length, piece.start)
    while len(data) < piece.length:
        more = os.pread(fd, piece.length - len(data), piece.start + len(data))
        if not more:
            raise changed(piece.member.source)
        data += more
    return data
