"""Cut members into frames, read, compress: several threads, in the order of the archive, in bounded memory."""

from __future__ import annotations

import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import zstandard

from envpack.archive import FILE, FRAME_BYTES, SYMLINK, digest, show
from envpack.errors import BrokenEnvironmentError
from envpack.members import Member, header_bytes, padding, tar_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from envpack.scan import Scanner

# Two NUL blocks end a tar archive.
_END_BYTES = 1024


@dataclass(slots=True)
class Piece:
    """Part of a member, or all of it: `length` bytes of its content from `start`, with its header if it is the first."""

    member: Member
    start: int
    length: int


@dataclass(slots=True)
class Frame:
    """What one frame holds, compressed."""

    packed: bytes
    raw_size: int


def cut(members: Iterable[Member]) -> Iterator[list[Piece]]:
    """Sort members into frames, and note where each one's content starts in the tar stream."""
    pieces: list[Piece] = []
    filled = 0
    at = 0
    for member in members:
        size = member.size if member.kind == FILE else 0
        at += header_bytes(member)
        member.offset = at
        at += size + len(padding(size))
        if size <= FRAME_BYTES:
            pieces.append(Piece(member, 0, size))
            filled += header_bytes(member) + size + len(padding(size))
            if filled >= FRAME_BYTES:
                yield pieces
                pieces, filled = [], 0
            continue
        if pieces:
            yield pieces
        for start in range(0, size, FRAME_BYTES):
            yield [Piece(member, start, min(FRAME_BYTES, size - start))]
        pieces, filled = [], 0
    yield pieces


class FrameWriter:
    """Writes frames to an open file.

    Parameters
    ----------
    file : BinaryIO
    level : int
        Of zstd.
    jobs : int
        Threads.
    scanner : Scanner
    progress : callable, optional
        Called with the bytes read since the last call.
    """

    def __init__(
        self,
        file: BinaryIO,
        level: int,
        jobs: int,
        scanner: Scanner,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._file = file
        self._level = level
        self._jobs = jobs
        self._scanner = scanner
        self._progress = progress
        self.sizes: list[int] = []
        self.raw_sizes: list[int] = []
        self.digests: list[bytes] = []

    def write(self, members: Iterable[Member]) -> None:
        """Write all members, in order, and the tar stream's end."""
        pending: deque[Future[Frame]] = deque()
        with ThreadPoolExecutor(self._jobs) as pool:
            try:
                frames = cut(members)
                last: list[Piece] = next(frames)
                for pieces in frames:
                    pending.append(pool.submit(self._make, last, False))
                    last = pieces
                    if len(pending) > 2 * self._jobs:
                        self._put(pending.popleft().result())
                pending.append(pool.submit(self._make, last, True))
                while pending:
                    self._put(pending.popleft().result())
            except BaseException:
                for future in pending:
                    future.cancel()
                raise

    def _put(self, frame: Frame) -> None:
        self._file.write(frame.packed)
        self.sizes.append(len(frame.packed))
        self.raw_sizes.append(frame.raw_size)
        self.digests.append(digest(frame.packed))
        if self._progress is not None:
            self._progress(frame.raw_size)

    def _make(self, pieces: list[Piece], is_last: bool) -> Frame:
        parts: list[bytes] = []
        for piece in pieces:
            member = piece.member
            if piece.start == 0:
                parts.append(tar_header(member))
            if member.kind == FILE:
                parts.append(self._content(piece))
                if piece.start + piece.length == member.size:
                    parts.append(padding(member.size))
            elif member.kind == SYMLINK and member.relocation != "none":
                member.record = self._scanner.link(member.link) or []
        if is_last:
            parts.append(bytes(_END_BYTES))
        raw = b"".join(parts)
        compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=True, write_content_size=True)
        return Frame(compressor.compress(raw), len(raw))

    def _content(self, piece: Piece) -> bytes:
        member = piece.member
        if member.data is not None:
            if piece.start == 0:
                self._note(member, member.data)
            return member.data[piece.start : piece.start + piece.length]
        try:
            fd = os.open(member.source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as exc:
            raise BrokenEnvironmentError(
                f"cannot read {show(member.source)}: {exc.strerror}; make it readable, or leave it out of the "
                "environment"
            ) from exc
        try:
            info = os.fstat(fd)
            if info.st_size != member.size or info.st_mtime_ns != member.mtime_ns:
                raise _changed(member)
            if piece.length == member.size:
                return self._small(fd, member)
            if piece.start == 0:
                with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as whole:
                    self._note(member, whole)
            return _pread(fd, piece, member)
        finally:
            os.close(fd)

    def _small(self, fd: int, member: Member) -> bytes:
        data = os.read(fd, member.size + 1)
        while len(data) < member.size:
            more = os.read(fd, member.size + 1 - len(data))
            if not more:
                break
            data += more
        if len(data) != member.size:
            raise _changed(member)
        self._note(member, data)
        return data

    def _note(self, member: Member, data: bytes | mmap.mmap) -> None:
        """Note a whole file's digest and relocation record."""
        with memoryview(data) as view:
            member.digest = digest(view)
        scanner = self._scanner
        if member.relocation == "text":
            member.record = scanner.text(data, member.placeholder) or []
        elif member.relocation == "binary":
            member.record = scanner.binary(data, member.placeholder) or []
        elif member.relocation == "unknown" and member.size:
            member.record = scanner.unknown(data, member.path) or []


def _pread(fd: int, piece: Piece, member: Member) -> bytes:
    data = os.pread(fd, piece.length, piece.start)
    while len(data) < piece.length:
        more = os.pread(fd, piece.length - len(data), piece.start + len(data))
        if not more:
            raise _changed(member)
        data += more
    return data


def _changed(member: Member) -> BrokenEnvironmentError:
    return BrokenEnvironmentError(
        f"{show(member.source)} changed while it was packed: pack again when nothing installs into, or writes to, "
        "the environment"
    )
