"""Put an archive's environment on this node: checked, and complete or not at all.

`envpack.stage.staging` has the functions to call. Nodes load this module from a slow file system: no dataclasses here
(which import inspect), nor anything heavier.
"""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from envpack.archive.index import Index
from envpack.common.locks import take_lock
from envpack.common.places import host_name, staged_prefix
from envpack.errors import NoSpaceError, StageFailedError, WrongArchiveError
from envpack.stage import compare, delta, existing, gc, marker, repair, root, temporaries
from envpack.stage.arrival import HEAD
from envpack.stage.extract import Extractor
from envpack.stage.frames import FrameFile
from envpack.stage.recompile import compile_relocated
from envpack.stage.relocate import Relocation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import TracebackType

    from envpack.common.places import StrPath
    from envpack.stage.arrival import Arrival

LOCK_TIMEOUT_S = 900.0
# Each process has two frames in memory; more of them would only wait for one another.
MAX_JOBS = 32
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class StageResult(NamedTuple):
    """What a staging did on one node.

    Attributes
    ----------
    prefix : Path
        The staged prefix.
    pack_id : str
        The pack id of the archive.
    reused : bool
        The node had the staged prefix already, and nothing had to be put back.
    seconds : float
        Duration, in seconds.
    size_bytes : int
        Bytes of all files, as packed.
    files : int
        Number of files and links.
    bytes_read : int
        Bytes of the archive that were read.
    transport : str
        How the archive came to the node.
    jobs : int
        Number of processes, or threads, that decoded and wrote.
    host : str
        Name of the node.
    linked : int
        Number of files that were hard-linked from an older stage.
    repaired : int
        Number of files, folders and links that were put back into the stage that the node had.
    evicted : tuple[str, ...]
        Names of older stages that were removed to make room.
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
    linked: int = 0
    repaired: int = 0
    evicted: tuple[str, ...] = ()

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
    force : bool, default False
        Read every file of a stage that the node has and compare it, instead of sizes, times and modes alone; take no
        files from older stages.

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
    OSError
        A system call failed; `envpack.stage.staging` names it.
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
        force: bool = False,
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
        self.prefix = staged_prefix(root_folder, index.pack_id, index.name)
        self.reused = False
        self._relocation = Relocation(index, self.prefix)
        self._progress = progress
        self._force = force
        self._bytes_read = 0
        self._linked = 0
        self._evicted: list[str] = []
        self._existing: existing.Existing | None = None
        self._older: delta.OlderStage | None = None
        self._extractor: Extractor | None = None
        self._temporary: Path | None = None
        self._fds: list[int] = []
        self._folder = root.open_root(self.prefix.parent.parent)
        try:
            lock = temporaries.stager_lock(self.prefix)
            self._fds.append(take_lock(lock, LOCK_TIMEOUT_S, error=StageFailedError))
            temporaries.sweep_temporaries(self._folder)
            self._look()
            if not self.reused:
                self._make_room()
                self._make_temporary()
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> Stager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _look(self) -> None:
        """Find out what the node has: this stage, perhaps damaged, or an older one."""
        self._existing = existing.look(self.prefix, self.index, self._relocation, force=self._force)
        if self._existing is None:
            if not self._force:
                self._older = delta.find(self.prefix, self.index, self._relocation)
            return
        self._fds.append(self._existing.fd)
        self.reused = not self._existing.lacking and not self._existing.foreign

    def _make_room(self) -> None:
        """See that the copy fits, before anything is written."""
        members: Collection[int] = self._existing.lacking if self._existing else range(len(self.index))
        if self._older:
            try:
                to_write = set(members) - set(self._older.linked)
                gc.make_room(self._folder, self.index, to_write, self._evicted)
                return
            except NoSpaceError:
                self._leave_older()  # so that it may go, too
        gc.make_room(self._folder, self.index, members, self._evicted)

    def _make_temporary(self) -> None:
        self._temporary, fd = temporaries.make_temporary(self._folder, self.prefix.name)
        self._fds.append(fd)

    def read(self, fd: int) -> None:
        """Stage the frames of an open archive: in several processes if this one may fork, else in threads."""
        self._write(FrameFile(fd, self.index))

    def receive(self, arrival: Arrival) -> None:
        """Stage the frames of an archive that is still arriving, as `read` does."""
        self._write(FrameFile(arrival.fd, self.index, HEAD.size + len(self.index.raw), arrival))

    def _write(self, frames: FrameFile) -> None:
        self._bytes_read += len(self.index.raw)
        if self.reused:
            return
        try:
            self._extract(frames)
        except OSError as exc:
            if exc.errno not in _NO_ROOM:
                raise
            # Others have filled the disk meanwhile, or there is a quota, which statvfs(3) does not tell.
            self._discard()
            self._leave_older()
            evicted = gc.evict_all(self._folder)
            self._evicted += evicted
            if not evicted:
                raise gc.no_space(self._folder, f"{exc.strerror} while writing") from exc
            self._make_temporary()
            try:
                self._extract(frames)
            except OSError as again:
                if again.errno not in _NO_ROOM:
                    raise
                raise gc.no_space(self._folder, f"{again.strerror} while writing") from again

    def _extract(self, frames: FrameFile) -> None:
        """Write into the temporary folder what the stage lacks."""
        assert self._temporary is not None
        try:
            self._extract_into(self._temporary, frames)
        except OSError as exc:
            # The extractor's errors name members.
            path = exc.filename if isinstance(exc.filename, str | bytes) else ""
            exc.filename = os.path.join(self._temporary, os.fsdecode(path))  # noqa: PTH118
            raise

    def _extract_into(self, temporary: Path, frames: FrameFile) -> None:
        index = self.index
        self._extractor = extractor = Extractor(index, self._relocation, temporary, self.jobs, self._progress)
        if self._existing is None:
            extractor.make_folders(index.folders)
            files = None
            if self._older:
                made, self._linked = self._older.put(extractor)
                # Nothing more comes from it: whoever wants to use it need not wait until this copy is complete.
                self._leave_older()
                made_here = compare.compiled_paths(index)
                files = {i for i in index.files if i not in made and index.paths[i] not in made_here}
            self._bytes_read += extractor.write(frames, files)
            extractor.make_links(range(index.hardlinks.start, len(index)))
            compiled = compile_relocated(index, temporary, self.prefix)
            marker.write(temporary, self.prefix, index, compiled)
            return
        lacking = self._existing.lacking
        extractor.make_folders(_folders_above(index, lacking))
        self._bytes_read += extractor.write(frames, {i for i in lacking if i in index.files})

    def finish(self) -> StageResult:
        """Give the staged prefix its name, or put back what it lacks.

        Raises
        ------
        OSError
            A system call failed; `envpack.stage.staging` names it.
        """
        if not self.reused:
            assert self._temporary is not None
            if self._existing:
                self._mend(self._temporary, self._existing)
            else:
                self._temporary.rename(self.prefix)
                self._temporary = None
        marker.touch(self.prefix)
        result = StageResult(
            prefix=self.prefix,
            pack_id=self.index.pack_id,
            reused=self.reused,
            seconds=round(time.perf_counter() - self._began, 6),
            size_bytes=self.index.size_bytes,
            files=len(self.index) - len(self.index.folders),
            bytes_read=self._bytes_read,
            transport=self.transport,
            jobs=self.jobs,
            host=host_name(),
            linked=self._linked,
            repaired=len(self._existing.lacking) if self._existing else 0,
            evicted=tuple(self._evicted),
        )
        self.abort()
        return result

    def _mend(self, temporary: Path, stage: existing.Existing) -> None:
        """Put back what a stage lacks; hard links share the file that lies there then."""
        index, extractor, lacking = self.index, self._extractor, stage.lacking
        assert extractor is not None
        links = {i for i in lacking if i >= index.hardlinks.start}
        compiled = compile_relocated(index, temporary, self.prefix, lacking)
        repair.take_out(self.prefix, temporary, stage.foreign)
        repair.put_back(self.prefix, temporary, index, lacking - links, compiled)
        extractor.make_links(sorted(links), stage.fd)
        repair.put_back(self.prefix, temporary, index, links, [])
        marker.write(self.prefix, self.prefix, index, compiled)
        marker.forget_damaged(self.prefix)

    def _discard(self) -> None:
        """Remove what was written so far."""
        if self._extractor is not None:
            self._extractor.close()
            self._extractor = None
        if self._temporary is not None:
            temporaries.remove_tree(self._temporary)
            self._temporary = None
            self._linked = 0

    def _leave_older(self) -> None:
        """Take no files from the older stage, and release its locks."""
        if self._older is not None:
            self._older.close()
            self._older = None

    def abort(self) -> None:
        """Remove the unfinished copy, release the locks. After `finish` this does nothing else."""
        self._discard()
        self._leave_older()
        while self._fds:
            os.close(self._fds.pop())


def _folders_above(index: Index, members: Collection[int]) -> list[int]:
    """Return the numbers of all folders that lie above members, sorted."""
    paths = set()
    for i in members:
        above = index.paths[i].rpartition(b"/")[0]
        while above and above not in paths:
            paths.add(above)
            above = above.rpartition(b"/")[0]
    return [i for i in index.folders if index.paths[i] in paths]
