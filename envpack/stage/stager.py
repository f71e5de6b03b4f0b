"""Put an archive's environment on this node: checked, and complete or not at all.

`envpack.stage.staging` has the functions to call. Nodes load this module from a slow file system: no dataclasses here
(which import inspect), nor anything heavier.
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
from envpack.errors import WrongArchiveError
from envpack.stage import marker, root, temporaries, warm_check, writers
from envpack.stage.arrival import HEAD
from envpack.stage.extract import Extractor
from envpack.stage.frame_source import FrameFile
from envpack.stage.recompile import compile_relocated
from envpack.stage.relocate import Relocation

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from envpack.common.places import StrPath
    from envpack.stage.arrival import Arrival

LOCK_TIMEOUT_S = 900.0
# Each process has two frames in memory; more of them would only wait for one another.
MAX_JOBS = 32


class StageResult(NamedTuple):
    """What a staging did on one node.

    Attributes
    ----------
    prefix : Path
        The staged prefix.
    pack_id : str
        The pack id of the archive.
    reused : bool
        The node had the staged prefix already.
    seconds : float
        Duration, in seconds.
    size_bytes : int
        Bytes of all files, as packed.
    files : int
        Number of files and links.
    bytes_read : int
        Bytes of the archive that were read or received.
    transport : str
        How the archive came to the node.
    jobs : int
        Number of processes, or threads, that decoded and wrote.
    host : str
        Name of the node.
    """

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
        """Staged megabytes (10^6 bytes) per second; 0 if nothing had to be staged."""
        return 0.0 if self.reused or not self.seconds else self.size_bytes / 1e6 / self.seconds

    def asdict(self) -> dict[str, Any]:
        """Return all attributes, as JSON can hold them."""
        return {**self._asdict(), "prefix": os.fspath(self.prefix), "mb_per_s": round(self.mb_per_s, 1)}

    def to_json(self) -> str:
        """Return all attributes as one line of JSON."""
        return json.dumps(self.asdict())


def default_jobs() -> int:
    """Return the number of CPUs that this process may use, 32 at most."""
    return min(MAX_JOBS, len(os.sched_getaffinity(0)))


class Stager:
    """Stages one archive.

    A context manager: call `read` with the open archive, or `receive` with one that is still arriving; then `finish`.
    Without `finish`, nothing is left under the staged prefix's name.

    Parameters
    ----------
    index : Index
        The archive's index, from `read_index` or `decode_index`.
    root_folder : str or os.PathLike, optional
        The staging root (default: MPIBOOT_STAGE_ROOT, then /tmp).
    jobs : int, optional
        Number of processes, or threads, that decode and write, 32 at most (default: the CPUs that this process may use).
    expected_pack_id : str, optional
        Refuse an archive with another pack id.
    progress : callable, optional
        Called as `progress(done_bytes, total_bytes)`, of uncompressed bytes, from any thread.
    transport : str, default "direct"
        How the archive came to the node; passed on to the result.

    Attributes
    ----------
    prefix : Path
        The staged prefix.
    reused : bool
        The node has the staged prefix already; `read` and `receive` need not be called.

    Raises
    ------
    StageRootError, NoSpaceError, PrefixTooLongError, WrongArchiveError, StageFailedError
        Nothing has been written then.
    """

    def __init__(
        self,
        index: Index,
        root_folder: StrPath | None = None,
        *,
        jobs: int | None = None,
        expected_pack_id: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        transport: str = "direct",
    ) -> None:
        self._began = time.perf_counter()
        if expected_pack_id is not None and index.pack_id != expected_pack_id:
            raise WrongArchiveError(
                f"{index.path} is not the expected archive: its pack id is {index.pack_id[:16]}…, expected was "
                f"{expected_pack_id[:16]}…; somebody has replaced it",
                "Submit the job again",
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
        self._lock_fd = -1
        self._temporary: Path | None = None
        self._temporary_fd = -1
        folder = root.open_root(self.prefix.parent.parent)
        self._lock_fd = temporaries.lock_stager(self.prefix, LOCK_TIMEOUT_S)
        try:
            temporaries.sweep_temporaries(folder)
            if self.prefix.is_symlink() or self.prefix.exists():
                self.reused = warm_check.fault_of(self.prefix, index, self._relocation) is None
            if not self.reused:
                root.check_space(folder, index)
                self._temporary, self._temporary_fd = temporaries.make_temporary(folder, self.prefix.name)
        except OSError as exc:
            self.abort()
            raise root.write_error(folder, exc) from exc
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
        """Stage the frames of an open archive: in several processes if this one may fork, else in threads."""
        self._write(FrameFile(fd, self.index))

    def receive(self, arrival: Arrival) -> None:
        """Stage the frames of an archive that is still arriving, as `read` does."""
        self._write(FrameFile(arrival.fd, self.index, HEAD.size + len(self.index.raw), arrival))

    def _write(self, frames: FrameFile) -> None:
        self.bytes_read += len(self.index.raw)
        if self.reused:
            return
        if writers.may_fork():
            self._start().run(frames)
        else:
            self._start().start(frames)
        self.bytes_read += self.index.archive_bytes

    def finish(self) -> StageResult:
        """Wait for the writers, verify, and give the staged prefix its name.

        Raises
        ------
        CorruptArchiveError
            A frame is damaged; the message names the archive and the member.
        NoSpaceError, StageFailedError
            Writing failed.
        """
        if not self.reused:
            assert self._extractor is not None and self._temporary is not None
            self._extractor.join()
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
            raise root.write_error(self.prefix, exc) from exc

    def _replace(self) -> None:
        """Replace a stage that failed its check; if a job still uses that one, put back its missing files instead."""
        assert self._temporary is not None
        try:
            fd = open_folder(self.prefix)
        except OSError:
            # Not a folder, so no process uses it as a prefix, and it lies in this user's own folder.
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
        """Stop, remove the unfinished copy, release the lock. After `finish` this does nothing."""
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
