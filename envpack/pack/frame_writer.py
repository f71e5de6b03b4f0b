"""Cut members into frames, read and compress them: in several threads, in the archive's order, in bounded memory.

Only `envpack.pack.archive_writer` imports this module.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import zstandard

from envpack.archive.index import FRAME_BYTES, digest, frame_check, show_path
from envpack.errors import BrokenEnvironmentError
from envpack.pack.members import FILE, SYMLINK, Member, header_bytes, padding, tar_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from envpack.archive.relocations import Record
    from envpack.pack.members import Data
    from envpack.pack.scan import Scanner

# A tar archive ends with two blocks of NULs.
_END_BYTES = 1024


@dataclass(slots=True)
class Piece:
    """A part of a member, or all of it: its header if `start` is 0, and `length` bytes of its content from `start`."""

    member: Member
    start: int
    length: int


@dataclass(slots=True)
class Frame:
    """A compressed frame, and its uncompressed size in bytes."""

    packed: bytes
    raw_size: int


def cut(members: Iterable[Member]) -> Iterator[list[Piece]]:
    """Yield the pieces of each frame, and set each member's offset in the tar stream."""
    pieces: list[Piece] = []
    filled = 0
    at = 0
    for member in members:
        size = member.size if member.kind == FILE else 0
        blocks = header_bytes(member) + size + len(padding(size))
        member.offset = at + header_bytes(member)
        at += blocks
        if pieces and filled + blocks > FRAME_BYTES:
            yield pieces
            pieces, filled = [], 0
        if size <= FRAME_BYTES:
            pieces.append(Piece(member, 0, size))
            filled += blocks
            continue
        for start in range(0, size, FRAME_BYTES):
            yield [Piece(member, start, min(FRAME_BYTES, size - start))]
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
    progress : callable, optional
        Called with the uncompressed bytes written since the last call.

    Attributes
    ----------
    sizes, raw_sizes, checks : list[int]
        Of each frame: bytes compressed, bytes uncompressed, `frame_check`.
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
        self.checks: list[int] = []
        self._hole: tuple[Frame, bytes] | None = None

    def write(self, members: Iterable[Member]) -> None:
        """Write all members in order, and the end of the tar stream."""
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
        self.checks.append(frame_check(frame.packed))
        if self._progress is not None:
            self._progress(frame.raw_size)

    def _make(self, pieces: list[Piece], is_last: bool) -> Frame:
        if self._is_hole(pieces, is_last):
            return self._hole_frame(pieces[0])
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
        return self._compressed(b"".join(parts))

    def _compressed(self, raw: bytes) -> Frame:
        compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=True, write_content_size=True)
        return Frame(compressor.compress(raw), len(raw))

    def _is_hole(self, pieces: list[Piece], is_last: bool) -> bool:
        """Tell whether a frame holds only a part of a sparse file's hole, which need not be read and compressed."""
        piece = pieces[0]
        if is_last or piece.length < FRAME_BYTES or piece.start == 0 or piece.member.data is not None:
            return False
        if piece.start + piece.length == piece.member.size and padding(piece.member.size):
            return False
        fd = _open(piece.member)
        try:
            return os.lseek(fd, piece.start, os.SEEK_DATA) >= piece.start + piece.length
        except OSError as exc:
            # ENXIO: there is only a hole up to the end of the file. Some file systems report no holes (lseek(2)).
            return exc.errno == errno.ENXIO
        finally:
            os.close(fd)

    def _hole_frame(self, piece: Piece) -> Frame:
        if self._hole is None:
            zeros = bytes(FRAME_BYTES)
            self._hole = self._compressed(zeros), digest(zeros)
        frame, zeros_digest = self._hole
        piece.member.parts[piece.start] = zeros_digest
        return frame

    def _content(self, piece: Piece) -> bytes:
        """Return a piece's bytes; set their digest and relocation record in the member."""
        member = piece.member
        if member.data is not None:
            data = member.data[piece.start : piece.start + piece.length]
        else:
            fd = _open(member)
            try:
                data = _read_piece(fd, piece)
            finally:
                os.close(fd)
        if piece.length == member.size:
            member.digest = digest(data)
            member.record = self._record(member, data)
        else:
            member.parts[piece.start] = digest(data)
            if self._hints(piece, data):
                member.suspect = True
        return data

    def _record(self, member: Member, data: Data) -> Record:
        record = None
        if member.relocation == "text":
            record = self._scanner.text(data, member.placeholder)
        elif member.relocation == "binary":
            record = self._scanner.binary(data, member.placeholder)
        elif member.relocation == "unknown":
            record = self._scanner.unknown(data, member.path)
        return record or []

    def _hints(self, piece: Piece, data: bytes) -> bool:
        """Tell whether a part of a large file, or its border with the part before, holds a text to be relocated."""
        member = piece.member
        if member.relocation == "none":
            return False
        texts = self._scanner.placeholders if member.relocation == "unknown" else [member.placeholder]
        if member.data is None and piece.start:
            before = max(map(len, texts))
            fd = _open(member)
            try:
                data = (
                    _read_piece(fd, Piece(member, max(0, piece.start - before), min(before, piece.start)))
                    + data
                )
            finally:
                os.close(fd)
        return member.data is not None or any(text in data for text in texts)

    def finish(self, members: list[Member]) -> None:
        """Set digests and records of the members that span frames; call it after `write`."""
        for member in members:
            if not member.parts:
                continue
            member.digest = digest(b"".join(part for _, part in sorted(member.parts.items())))
            if not member.suspect:
                continue
            if member.data is not None:
                member.record = self._record(member, member.data)
                continue
            fd = _open(member)
            try:
                with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as whole:
                    member.record = self._record(member, whole)
            finally:
                os.close(fd)


def _open(member: Member) -> int:
    """Open a member's source, if its size and time are still those of the member.

    Raises
    ------
    BrokenEnvironmentError
        It cannot be read, or has changed.
    """
    try:
        fd = os.open(member.source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as exc:
        raise BrokenEnvironmentError(
            f"cannot read {show_path(member.source)}: {exc.strerror}",
            "Make it readable, or remove it from the environment",
        ) from exc
    info = os.fstat(fd)
    if info.st_size != member.size or info.st_mtime_ns != member.mtime_ns:
        os.close(fd)
        raise _changed(member)
    return fd


def _read_piece(fd: int, piece: Piece) -> bytes:
    data = os.pread(fd, piece.length, piece.start)
    while len(data) < piece.length:
        more = os.pread(fd, piece.length - len(data), piece.start + len(data))
        if not more:
            raise _changed(piece.member)
        data += more
    return data


def _changed(member: Member) -> BrokenEnvironmentError:
    return BrokenEnvironmentError(
        f"{show_path(member.source)} changed while it was packed",
        "Pack again when nothing installs into the environment, or writes to it",
    )
