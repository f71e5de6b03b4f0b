"""Write an archive's members into a folder: several processes, or threads, decode frames and write the files in them.

Folders come first, then regular files, created exclusively, then hard links and symlinks, so that no archive can make
this write through a link. The stager and `verify` import this module.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

from envpack.archive.index import Index, digest, frame_check, remove_and_pack_again, show_path
from envpack.common.locks import open_folder
from envpack.common.places import host_name
from envpack.errors import CorruptArchiveError, StageFailedError
from envpack.stage import relocate, root, writers

if TYPE_CHECKING:
    from collections.abc import Callable

    from envpack.stage.frame_source import FrameFile

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
# A frame of nothing but NULs packs to less than this.
_MAYBE_HOLE_BYTES = 2048


class Extractor:
    """Writes one archive's members into one folder.

    Parameters
    ----------
    index : Index
        The archive's index.
    relocation : Relocation
        The edits for the staged prefix.
    target : Path
        An empty folder of this user.
    jobs : int
        Number of processes, or threads.
    progress : callable, optional
        Called with the bytes written since the last call, from any thread.
    """

    def __init__(
        self,
        index: Index,
        relocation: relocate.Relocation,
        target: Path,
        jobs: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.index = index
        self.relocation = relocation
        self.target = target
        self.jobs = jobs
        self.progress = progress
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._frames: FrameFile | None = None
        self._root_fd = -1
        self._umask = _umask()
        self._starts: list[int] = []
        self._whole: list[list[int]] = []
        self._parts: list[list[int]] = []
        self._spanning: list[int] = []
        self._holes: set[bytes] = set()
        self._plan()

    def _plan(self) -> None:
        """Sort the files into those that lie in one frame, and those that span several."""
        index = self.index
        at = 0
        for size in index.frame_raw_sizes:
            self._starts.append(at)
            at += size
        ends = [*self._starts[1:], at]
        self._whole = [[] for _ in self._starts]
        self._parts = [[] for _ in self._starts]
        frame = 0
        for i in index.files:
            offset = index.offsets[i]
            end = offset + index.sizes[i]
            while ends[frame] <= offset and frame + 1 < len(ends):
                frame += 1
            if end <= ends[frame]:
                self._whole[frame].append(i)
                continue
            self._spanning.append(i)
            for part in range(frame, bisect_right(self._starts, end - 1)):
                self._parts[part].append(i)

    def prepare(self) -> None:
        """Make the folders, and the files that span several frames."""
        index = self.index
        self._root_fd = open_folder(self.target)
        try:
            for i in index.folders:
                os.mkdir(index.paths[i], 0o700 | index.modes[i], dir_fd=self._root_fd)
            for i in self._spanning:
                fd = os.open(index.paths[i], _CREATE, 0o600, dir_fd=self._root_fd)
                os.truncate(fd, self.relocation.size(index, i))
                os.close(fd)
        except OSError as exc:
            raise root.write_error(self.target, exc) from exc

    def run(self, frames: FrameFile) -> None:
        """Write all frames of an open archive, in several processes."""
        try:
            writers.run_writers(
                len(self.index.frame_sizes), self.jobs, lambda: self._one_by_one(frames), self.progress
            )
        except OSError as exc:
            raise root.write_error(self.target, exc) from exc

    def _one_by_one(self, frames: FrameFile) -> Callable[[int], int]:
        packed = self._buffer()
        decoder = Decoder(self.index)

        def work(frame: int) -> int:
            self._write_frame(decoder, frame, frames.read(frame, packed))
            return self.index.frame_raw_sizes[frame]

        return work

    def _buffer(self) -> memoryview:
        """Return room for the largest frame, used again for each one: new memory costs more than decoding into it."""
        return memoryview(bytearray(max(self.index.frame_sizes, default=0)))

    def start(self, frames: FrameFile) -> None:
        """Start threads that write frames as the source returns them."""
        self._frames = frames
        self._threads = [threading.Thread(target=self._work, args=(frames,)) for _ in range(self.jobs)]
        for thread in self._threads:
            thread.start()

    def _work(self, frames: FrameFile) -> None:
        packed = self._buffer()
        decoder = Decoder(self.index)
        try:
            while self._error is None:
                item = frames.next(packed)
                if item is None:
                    return
                self._write_frame(decoder, *item)
                if self.progress is not None:
                    self.progress(self.index.frame_raw_sizes[item[0]])
        except OSError as exc:
            self._error = root.write_error(self.target, exc)
            self._error.__cause__ = exc
            frames.stop()
        except BaseException as exc:
            self._error = exc
            frames.stop()

    def _write_frame(self, decoder: Decoder, frame: int, packed: bytearray | memoryview) -> None:
        if self._is_known_hole(frame, packed):
            return
        data = decoder.decoded(frame, packed)
        start = self._starts[frame]
        self._write_files(self._whole[frame], start, data)
        parts = self._parts[frame]
        if parts:
            # `prepare` made the file with its final size: where nothing is written, it keeps a hole.
            hole = len(packed) < _MAYBE_HOLE_BYTES and bytes(data).count(0) == len(data)
            if hole and not self._whole[frame]:
                self._holes.add(bytes(packed))
            for i in parts:
                if not hole or i in self.relocation.edits:
                    self._write_part(i, start, data)

    def _is_known_hole(self, frame: int, packed: bytearray | memoryview) -> bool:
        if len(packed) >= _MAYBE_HOLE_BYTES or self._whole[frame] or bytes(packed) not in self._holes:
            return False
        return not any(i in self.relocation.edits for i in self._parts[frame])

    def _write_files(self, members: list[int], start: int, data: memoryview) -> None:
        """Write files that lie in one frame.

        Hot loop: look attributes up once, outside it.
        """
        index = self.index
        paths, modes, times, sizes, offsets = (
            index.paths,
            index.modes,
            index.mtimes_ns,
            index.sizes,
            index.offsets,
        )
        edits, umask, root_fd = self.relocation.edits, self._umask, self._root_fd
        open_, write, utime, close = os.open, os.write, os.utime, os.close
        for i in members:
            offset = offsets[i] - start
            content: memoryview | bytes = data[offset : offset + sizes[i]]
            if i in edits:
                content = relocate.apply(content, edits[i])
            mode = modes[i]
            fd = open_(paths[i], _CREATE, mode, dir_fd=root_fd)
            try:
                if content and write(fd, content) != len(content):
                    # A short write, as on a full disk. Write again, to get the error.
                    _pwrite_all(fd, content, 0)
                if mode & umask:
                    os.fchmod(fd, mode)
                utime(fd, ns=(times[i], times[i]))
            finally:
                close(fd)

    def _write_part(self, i: int, frame_start: int, data: memoryview) -> None:
        index = self.index
        file_start = index.offsets[i]
        begin = max(file_start, frame_start)
        end = min(file_start + index.sizes[i], frame_start + len(data))
        part = data[begin - frame_start : end - frame_start]
        edits = self.relocation.edits.get(i, [])
        fd = os.open(index.paths[i], _REOPEN, dir_fd=self._root_fd)
        try:
            offset, content = relocate.apply_part(begin - file_start, part, edits)
            _pwrite_all(fd, content, offset)
        finally:
            os.close(fd)

    def join(self) -> None:
        """Wait for the threads; raise the first error of any of them."""
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Set modes and times of the files that span frames, and make links; call it after the last frame."""
        try:
            self._finish()
        except OSError as exc:
            raise root.write_error(self.target, exc) from exc

    def _finish(self) -> None:
        index = self.index
        for i in self._spanning:
            fd = os.open(index.paths[i], _REOPEN, dir_fd=self._root_fd)
            os.chmod(fd, index.modes[i])  # noqa: PTH101
            os.utime(fd, ns=(index.mtimes_ns[i], index.mtimes_ns[i]))
            os.close(fd)
        for i in index.hardlinks:
            os.link(
                index.links[i], index.paths[i],
                src_dir_fd=self._root_fd, dst_dir_fd=self._root_fd, follow_symlinks=False,
            )  # fmt: skip
        for i in index.symlinks:
            target = self.relocation.links.get(i, index.links[i])
            os.symlink(target, index.paths[i], dir_fd=self._root_fd)

    def abort(self) -> None:
        """Stop the threads; the caller removes the files that they wrote."""
        if self._error is None:
            self._error = StageFailedError("staging was aborted", "Stage the archive again")
        if self._frames is not None:
            self._frames.stop()
        for thread in self._threads:
            if thread.ident is not None:  # an interrupt can come before all of them have started
                thread.join()
        self._close()

    def _close(self) -> None:
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1


class Decoder:
    """Decodes and checks one frame after another, always into the same memory."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._buffer = memoryview(bytearray(max(index.frame_raw_sizes, default=0)))
        self._zstd = zstandard.ZstdDecompressor()

    def decoded(self, frame: int, packed: bytes | bytearray | memoryview) -> memoryview:
        """Return a frame's content, valid until the next call.

        Raises
        ------
        CorruptArchiveError
            The frame differs from its checksum.
        """
        index = self._index
        data = self._buffer[: index.frame_raw_sizes[frame]]
        try:
            whole = zstandard.frame_content_size(packed) == len(data)
            if not whole or frame_check(packed) != index.frame_checks[frame]:
                raise _corrupt(index, frame, packed)
            # Into a buffer that has room for all of it, zstd decodes in one go, and checks its checksum.
            done = self._zstd.stream_reader(packed).readinto(data) if data else 0
        except zstandard.ZstdError as exc:
            raise _corrupt(index, frame, packed) from exc
        if done != len(data):
            raise _corrupt(index, frame, packed)
        return data


def _corrupt(index: Index, frame: int, packed: bytes | bytearray | memoryview) -> CorruptArchiveError:
    """Return the error for a damaged frame; it names the first member whose content differs from its checksum."""
    start = sum(index.frame_raw_sizes[:frame])
    end = start + index.frame_raw_sizes[frame]
    data = _decode_start(packed, end - start)
    members = []
    for i in index.files:
        offset = index.offsets[i]
        if offset < end and offset + index.sizes[i] > start:
            members.append(i)
    bad = next((i for i in members if not _is_good(index, i, start, data, end - start)), None)
    if bad is not None:
        where = f"member {show_path(index.paths[bad])}"
    elif members:
        where = f"a header near member {show_path(index.paths[members[0]])}"
    else:
        where = "headers"
    return CorruptArchiveError(
        f"{index.path} is damaged: {where} (frame {frame} of {len(index.frame_sizes)}, byte "
        f"{sum(index.frame_sizes[:frame])}) differs from its checksum, as read on {host_name()}",
        remove_and_pack_again(index),
    )


def _is_good(index: Index, i: int, start: int, data: bytes, size: int) -> bool:
    offset = index.offsets[i] - start
    if offset < 0 or offset + index.sizes[i] > size:
        # A part of a file that spans frames: it fills this one.
        return False
    return digest(data[offset : offset + index.sizes[i]]) == index.digest_of(i)


def _decode_start(packed: bytes | bytearray | memoryview, size: int) -> bytes:
    """Decode a damaged frame up to the damage."""
    decoder = zstandard.ZstdDecompressor().decompressobj()
    decoded = bytearray()
    view = memoryview(packed)
    try:
        for at in range(0, len(view), 4096):
            decoded += decoder.decompress(view[at : at + 4096])
            if len(decoded) > size:
                break
    except zstandard.ZstdError:
        pass
    return bytes(decoded)


def _pwrite_all(fd: int, content: memoryview | bytes, offset: int) -> None:
    view = memoryview(content)
    while len(view):
        done = os.pwrite(fd, view, offset)
        view = view[done:]
        offset += done


def _umask() -> int:
    """Return the umask without changing it, as umask(2) would for a moment, in all threads."""
    with Path("/proc/self/status").open(encoding="latin-1") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o777
