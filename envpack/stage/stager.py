"""Put an archive's environment on this node: checked, whole or not at all, ready to run.

Nodes load this from a slow file system, so it imports the standard library's light parts and zstandard only: no
dataclasses (which import inspect), no click, no rich.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from envpack.archive.index import Index
from envpack.common.locks import open_folder, try_lock
from envpack.common.places import host_name, staged_prefix
from envpack.errors import NotAnArchiveError, WrongArchiveError
from envpack.stage import marker, root, temporaries, warm_check, writers
from envpack.stage.extract import Extractor
from envpack.stage.frame_source import FrameFile, FrameQueue
from envpack.stage.recompile import compile_relocated
from envpack.stage.relocate import Relocation

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from envpack.common.places import StrPath

LOCK_TIMEOUT_S = 900.0
# Each has two frames in memory; more of them would wait for one another.
MAX_JOBS = 32


class StageResult(NamedTuple):
    """How a staging went, on one node."""

    prefix: Path
    pack_id: str
    reused: bool
    seconds: float
    size_bytes: int
    files: int
    bytes_read: int
    transport: str
    jobs: int
    host: str

    @property
    def mb_per_s(self) -> float:
        """Staged megabytes per second; 0 where nothing had to be staged."""
        return 0.0 if self.reused or not self.seconds else self.size_bytes / 1e6 / self.seconds

    def asdict(self) -> dict[str, Any]:
        return {**self._asdict(), "prefix": os.fspath(self.prefix), "mb_per_s": round(self.mb_per_s, 1)}

    def to_json(self) -> str:
        return json.dumps(self.asdict())


def default_jobs() -> int:
    """Return the number of CPUs that this process may use, as far as more of them help."""
    return min(MAX_JOBS, len(os.sched_getaffinity(0)))


class Stager:
    """Stages one archive from its bytes, in whatever way they arrive.

    Use as a context manager: `feed` the archive's frames, from its first byte on, then `finish`. Decoding and writing
    go on in threads meanwhile. What is not finished leaves nothing under the staged prefix's name.

    Parameters
    ----------
    index : Index
        From `read_index`, or `decode_index` of the archive's last bytes.
    root_folder : str or os.PathLike, optional
        The staging root (default MPIBOOT_STAGE_ROOT, then /tmp).
    jobs : int, optional
        Processes that decode and write, 32 at most (default: the CPUs this process may use).
    expected_pack_id : str, optional
        Refuse any other archive.
    progress : callable, optional
        Called as `progress(done_bytes, total_bytes)`, of uncompressed bytes, from any thread.
    transport : str
        For the result.

    Attributes
    ----------
    prefix : Path
        The staged prefix.
    reused : bool
        The node has it already: nothing need be fed.

    Raises
    ------
    StageRootError, NoSpaceError, PrefixTooLongError, WrongArchiveError
        Before anything is written.
    """

    def __init__(
        self,
        index: Index,
        root_folder: StrPath | None = None,
        *,
        jobs: int | None = None,
        expected_pack_id: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        transport: str = "stream",
    ) -> None:
        self._began = time.perf_counter()
        if expected_pack_id is not None and index.pack_id != expected_pack_id:
            raise WrongArchiveError(
                f"{index.path} is not the archive that was asked for: its pack id is {index.pack_id[:16]}…, "
                f"wanted {expected_pack_id[:16]}…: it was replaced meanwhile; submit again"
            )
        if jobs is not None and jobs < 1:
            raise ValueError(f"jobs must be at least 1, not {jobs}")
        self.index = index
        self.jobs = min(MAX_JOBS, jobs or default_jobs())
        self.transport = transport
        self.bytes_read = 0
        self.prefix = staged_prefix(root_folder, index.pack_id, index.name)
        self.reused = False
        self._relocation = Relocation(index, self.prefix)
        self._progress = _Progress(progress, sum(index.frame_raw_sizes)) if progress else None
        self._extractor: Extractor | None = None
        self._queue: FrameQueue | None = None
        self._frame = bytearray()
        self._frame_number = 0
        self._lock_fd = -1
        self._temporary: Path | None = None
        self._temporary_fd = -1
        folder = root.open_root(self.prefix.parent.parent)
        self._lock_fd = temporaries.lock_stager(folder, self.prefix.name, LOCK_TIMEOUT_S)
        try:
            temporaries.sweep(folder)
            if self.prefix.is_symlink() or self.prefix.exists():
                wrong = warm_check.what_is_wrong(self.prefix, index, self._relocation)
                self.reused = wrong is None
            if not self.reused:
                root.check_space(folder, index)
                self._temporary, self._temporary_fd = temporaries.make_temporary(folder, self.prefix.name)
        except OSError as exc:
            self.abort()
            raise root.write_failed(folder, exc) from exc
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> Stager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _start(self) -> Extractor:
        assert self._temporary is not None
        progress = self._progress.add if self._progress else None
        self._extractor = Extractor(self.index, self._relocation, self._temporary, self.jobs, progress)
        self._extractor.prepare()
        return self._extractor

    def read(self, fd: int) -> None:
        """Take all of the archive from an open file: in processes where that may be, else in threads."""
        self.bytes_read += len(self.index.raw)
        if self.reused:
            return
        frames = FrameFile(fd, self.index)
        if writers.may_fork():
            self._start().run(frames)
        else:
            self._start().start(frames)
        self.bytes_read += self.index.archive_bytes

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the archive; blocks while the writers are behind. The buffer may be reused at once.

        Bytes after the last frame (the index) are ignored, and all where `reused` is true.
        """
        self.bytes_read += len(data)
        if self.reused:
            return
        if self._queue is None:
            self._queue = FrameQueue(self.jobs)
            self._start().start(self._queue)
        view = memoryview(data)
        while len(view) and self._frame_number < len(self.index.frame_sizes):
            missing = self.index.frame_sizes[self._frame_number] - len(self._frame)
            self._frame += view[:missing]
            view = view[missing:]
            if len(self._frame) == self.index.frame_sizes[self._frame_number]:
                self._queue.put(self._frame_number, self._frame)
                self._frame = bytearray()
                self._frame_number += 1

    def finish(self) -> StageResult:
        """Wait for the writers, verify, and give the staged prefix its name.

        Raises
        ------
        CorruptArchiveError
            With the archive and the member that is damaged.
        NotAnArchiveError
            The bytes ended before the last frame.
        """
        if not self.reused:
            if self._extractor is None:
                self.feed(b"")
            if self._queue is not None:
                self._queue.end()
            assert self._extractor is not None and self._temporary is not None
            self._extractor.join()
            if self._queue is not None and self._frame_number < len(self.index.frame_sizes):
                raise NotAnArchiveError(
                    f"{self.index.path} ended after {self.bytes_read} of {self.index.archive_bytes} bytes"
                )
            self._extractor.finish()
            compile_relocated(self.index, self._temporary, self.prefix)
            self._publish()
        marker.touch(self.prefix)
        result = StageResult(
            prefix=self.prefix,
            pack_id=self.index.pack_id,
            reused=self.reused,
            seconds=round(time.perf_counter() - self._began, 6),
            size_bytes=self.index.size_bytes,
            files=len(self.index) - len(self.index.folders),
            bytes_read=self.bytes_read,
            transport=self.transport,
            jobs=self.jobs,
            host=host_name(),
        )
        self.abort()
        return result

    def _publish(self) -> None:
        assert self._temporary is not None
        try:
            marker.write(self._temporary, self.prefix, self.index)
            if self.prefix.is_symlink() or self.prefix.exists():
                self._replace()
            else:
                self._temporary.rename(self.prefix)
                self._temporary = None
        except OSError as exc:
            raise root.write_failed(self.prefix, exc) from exc

    def _replace(self) -> None:
        """Take an incomplete stage's place; where a job still runs from it, put the missing files back instead."""
        assert self._temporary is not None
        try:
            fd = open_folder(self.prefix)
        except OSError:
            # Not a folder: whatever it is, it is below our own folder, and nobody can be using it as a prefix.
            self.prefix.unlink()
            self._temporary.rename(self.prefix)
            self._temporary = None
            return
        try:
            if try_lock(fd, self.prefix):
                aside = temporaries.put_aside(self.prefix)
                self._temporary.rename(self.prefix)
                self._temporary = None
                temporaries.remove_tree(aside)
            else:
                warm_check.repair(self.prefix, self._temporary, self.index)
        finally:
            os.close(fd)

    def abort(self) -> None:
        """Stop, remove what is unfinished, give the lock back. Does nothing after `finish`."""
        if self._extractor is not None:
            self._extractor.abort()
            self._extractor = None
        if self._temporary is not None:
            temporaries.remove_tree(self._temporary)
            self._temporary = None
        for fd in (self._temporary_fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._temporary_fd = self._lock_fd = -1


class _Progress:
    def __init__(self, report: Callable[[int, int], None], total: int) -> None:
        self._report = report
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._report(self._done, self._total)
