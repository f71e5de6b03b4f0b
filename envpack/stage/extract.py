"""Write an archive's members into a folder: several processes, or threads, decode frames and write the files in them.

Folders come first, then regular files, created exclusively, then hard links and symlinks, so that no archive can make
this write through a link. Whoever needs only some of the files reads only the frames that hold them. The stager
imports this module.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.locks import open_folder
from envpack.errors import StageFailedError
from envpack.stage import relocate, writers
from envpack.stage.frames import Decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from envpack.archive.index import Index
    from envpack.stage.frames import FrameFile

# A file system has no hard links, or a file has too many.
_NO_HARD_LINK = (errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
# A frame of nothing but NULs packs to less than this.
_MAYBE_HOLE_BYTES = 2048
# How many frames the kernel is asked for at once.
_AHEAD = 4


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
        Called as `progress(done_bytes, total_bytes)`, of uncompressed bytes, from any thread.
    """

    def __init__(
        self,
        index: Index,
        relocation: relocate.Relocation,
        target: Path,
        jobs: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.index = index
        self.relocation = relocation
        self.jobs = jobs
        self.umask = _umask()
        self.root_fd = open_folder(target)
        self._progress = progress
        self._error: BaseException | None = None
        self._starts: list[int] = []
        self._whole: list[list[int]] = []
        self._parts: list[list[int]] = []
        self._spanning: list[int] = []
        # The frames to read.
        self._wanted: list[int] = []

    def close(self) -> None:
        """Close the folder."""
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1

    def make_folders(self, folders: Iterable[int]) -> None:
        """Make folders; parents come first, as members are sorted."""
        for i in folders:
            mode = 0o700 | self.index.modes[i]
            os.mkdir(self.index.paths[i], mode, dir_fd=self.root_fd)
            if mode & self.umask:
                os.chmod(self.index.paths[i], mode, dir_fd=self.root_fd)

    def write(self, frames: FrameFile, files: Collection[int] | None = None) -> int:
        """Write files, in several processes if this one may fork, else in threads.

        Parameters
        ----------
        frames : FrameFile
            The archive's frames.
        files : collection of int, optional
            Numbers of the files (default: all of them, and every frame is read and checked).

        Returns
        -------
        int
            Bytes of the frames that were read.
        """
        self._plan(files)
        for i in self._spanning:
            fd = os.open(self.index.paths[i], _CREATE, 0o600, dir_fd=self.root_fd)
            os.truncate(fd, self.relocation.size(self.index, i))
            os.close(fd)
        progress = self._count_progress()
        if writers.may_fork():
            writers.run_writers(len(self._wanted), self.jobs, lambda: self._work(frames), progress)
        else:
            self._run_threads(frames, progress)
        for i in self._spanning:
            fd = os.open(self.index.paths[i], _REOPEN, dir_fd=self.root_fd)
            os.chmod(fd, self.index.modes[i])  # noqa: PTH101
            os.utime(fd, ns=(time.time_ns(), self.index.mtimes_ns[i]))
            os.close(fd)
        return sum(self.index.frame_sizes[frame] for frame in self._wanted)

    def _plan(self, files: Collection[int] | None) -> None:
        """Sort the files into those that lie in one frame, and those that span several."""
        index = self.index
        at = 0
        self._starts = []
        for size in index.frame_raw_sizes:
            self._starts.append(at)
            at += size
        ends = [*self._starts[1:], at]
        self._whole = [[] for _ in self._starts]
        self._parts = [[] for _ in self._starts]
        self._spanning = []
        frame = 0
        for i in index.files if files is None else sorted(files):
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
        all_frames = range(len(ends)) if self._starts else range(0)
        self._wanted = [n for n in all_frames if files is None or self._whole[n] or self._parts[n]]

    def _count_progress(self) -> Callable[[int], None] | None:
        if self._progress is None:
            return None
        report, lock, done = self._progress, threading.Lock(), 0
        total = sum(self.index.frame_raw_sizes[frame] for frame in self._wanted)

        def count(more: int) -> None:
            nonlocal done
            with lock:
                done += more
                report(done, total)

        return count

    def _run_threads(self, frames: FrameFile, progress: Callable[[int], None] | None) -> None:
        turns = iter(range(len(self._wanted)))
        lock = threading.Lock()

        def run() -> None:
            try:
                work = self._work(frames)
                while self._error is None:
                    with lock:
                        turn = next(turns, None)
                    if turn is None:
                        return
                    done = work(turn)
                    if progress is not None:
                        progress(done)
            except BaseException as exc:
                self._error = self._error or exc

        self._error = None
        threads = [threading.Thread(target=run) for _ in range(self.jobs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:
            self._error = self._error or StageFailedError("staging was aborted", "Stage the archive again")
            for thread in threads:
                if thread.ident is not None:  # an interrupt can come before all of them have started
                    thread.join()
            raise
        if self._error is not None:
            raise self._error

    def _work(self, frames: FrameFile) -> Callable[[int], int]:
        """Return a function that writes one of the wanted frames, and returns its size in bytes."""
        # Room for the largest frame, used again for each one: new memory costs more than decoding into it.
        packed = memoryview(bytearray(max(self.index.frame_sizes, default=0)))
        decoder = Decoder(self.index)
        wanted = self._wanted

        def work(turn: int) -> int:
            frame = wanted[turn]
            ahead = frame + 1
            for following in wanted[turn + 1 : turn + _AHEAD]:
                ahead += following == ahead
            self._write_frame(decoder, frame, frames.read(frame, packed, ahead))
            return self.index.frame_raw_sizes[frame]

        return work

    def _write_frame(self, decoder: Decoder, frame: int, packed: memoryview) -> None:
        data = decoder.decoded(frame, packed)
        start = self._starts[frame]
        index, edits, now = self.index, self.relocation.edits, time.time_ns()
        for i in self._whole[frame]:
            offset = index.offsets[i] - start
            content: memoryview | bytes = data[offset : offset + index.sizes[i]]
            if i in edits:
                content = relocate.apply(content, edits[i])
            self.write_file(i, content, now)
        parts = self._parts[frame]
        if parts:
            # The file was made with its final size: where nothing is written, it keeps a hole.
            hole = len(packed) < _MAYBE_HOLE_BYTES and bytes(data) == bytes(len(data))
            for i in parts:
                if not hole or i in edits:
                    self._write_part(i, start, data)

    def write_file(self, i: int, content: memoryview | bytes, now: int) -> None:
        """Write one whole file.

        Parameters
        ----------
        i : int
            The member's number.
        content : bytes-like
            Its relocated content.
        now : int
            Its access time, in nanoseconds since 1970: cleaners of /tmp remove what was not read for long.
        """
        mode = self.index.modes[i]
        fd = os.open(self.index.paths[i], _CREATE, mode, dir_fd=self.root_fd)
        try:
            if content and os.write(fd, content) != len(content):
                # A short write, as on a full disk. Write again, to get the error.
                _pwrite_all(fd, content, 0)
            if mode & self.umask:
                os.fchmod(fd, mode)
            os.utime(fd, ns=(now, self.index.mtimes_ns[i]))
        except OSError as exc:
            exc.filename = self.index.paths[i]
            raise
        finally:
            os.close(fd)

    def _write_part(self, i: int, frame_start: int, data: memoryview) -> None:
        index = self.index
        file_start = index.offsets[i]
        begin = max(file_start, frame_start)
        end = min(file_start + index.sizes[i], frame_start + len(data))
        part = data[begin - frame_start : end - frame_start]
        edits = self.relocation.edits.get(i, [])
        fd = os.open(index.paths[i], _REOPEN, dir_fd=self.root_fd)
        try:
            offset, content = relocate.apply_part(begin - file_start, part, edits)
            _pwrite_all(fd, content, offset)
        except OSError as exc:
            exc.filename = index.paths[i]
            raise
        finally:
            os.close(fd)

    def make_links(self, members: Iterable[int], sources_fd: int | None = None) -> None:
        """Make hard links and symlinks; call it after the last file.

        Parameters
        ----------
        members : iterable of int
            Numbers of members; those that are no links are skipped.
        sources_fd : int, optional
            The folder that has the files that hard links share (default: the one that is written).
        """
        index = self.index
        sources_fd = self.root_fd if sources_fd is None else sources_fd
        for i in members:
            if i in index.hardlinks:
                try:
                    os.link(
                        index.links[i], index.paths[i],
                        src_dir_fd=sources_fd, dst_dir_fd=self.root_fd, follow_symlinks=False,
                    )  # fmt: skip
                except OSError as exc:
                    if exc.errno not in _NO_HARD_LINK:
                        raise
                    self._copy(sources_fd, index.links[i], index.paths[i])
            elif i in index.symlinks:
                target = self.relocation.links.get(i, index.links[i])
                os.symlink(target, index.paths[i], dir_fd=self.root_fd)

    def _copy(self, sources_fd: int, source: bytes, path: bytes) -> None:
        """Copy a file of the stage, with its mode and time, where it cannot be linked."""
        reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=sources_fd)
        try:
            info = os.fstat(reader)
            writer = os.open(path, _CREATE, 0o600, dir_fd=self.root_fd)
            try:
                at = 0
                while part := os.pread(reader, 1 << 20, at):
                    _pwrite_all(writer, part, at)
                    at += len(part)
                os.fchmod(writer, info.st_mode & 0o777)
                os.utime(writer, ns=(time.time_ns(), info.st_mtime_ns))
            finally:
                os.close(writer)
        finally:
            os.close(reader)


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
