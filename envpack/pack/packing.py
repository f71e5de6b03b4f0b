"""Pack an environment into one archive; an environment that has not changed is not packed again.

`envpack pack` and mpiboot call this. Packing runs on login nodes, and may import anything that envpack requires.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from envpack.archive.damage import is_damaged, mark, note_damage
from envpack.common.places import host_name
from envpack.common.prefix import kind_of
from envpack.common.trust import make_private_folder
from envpack.errors import ArchiveError, BrokenEnvironmentError, CorruptArchiveError, NotAnEnvironmentError
from envpack.pack import store
from envpack.pack.archive_writer import rules, write_archive
from envpack.pack.collect import collect
from envpack.pack.editable import outside_warnings
from envpack.pack.failures import named_errors
from envpack.pack.older import OlderArchive
from envpack.pack.walk import walk_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from envpack.archive.index import Index
    from envpack.common.places import StrPath
    from envpack.pack.walk import Walk

DEFAULT_LEVEL = 5
# A login node has more CPUs, for others as well.
MAX_JOBS = 16
LOCK_TIMEOUT_S = 600.0
NAME_IT = "Name the root folder of an environment with --prefix"


@dataclass(frozen=True)
class PackResult:
    """What a packing did.

    Attributes
    ----------
    path : Path
        The archive.
    pack_id : str
        64 hexadecimal digits that name its content.
    name : str
        The environment's name.
    size_bytes : int
        Bytes of the archive.
    raw_bytes : int
        Bytes of all files in it.
    files : int
        Number of files and links.
    seconds : float
        Duration, in seconds.
    reused : bool
        The environment had not changed since this archive was made.
    kind : str
        "conda" or "venv".
    warnings : tuple[str, ...]
        What the user should know about the archive.
    excluded : tuple[str, ...]
        What `exclude` left out: paths relative to the prefix; of a folder that was left out, only the folder.
    excluded_bytes : int
        Bytes of all that was left out.
    frames_copied : int
        Frames that were copied from an older archive.
    """

    path: Path
    pack_id: str
    name: str
    size_bytes: int
    raw_bytes: int
    files: int
    seconds: float
    reused: bool
    kind: str
    warnings: tuple[str, ...] = field(default=())
    excluded: tuple[str, ...] = field(default=())
    excluded_bytes: int = 0
    frames_copied: int = 0

    def asdict(self) -> dict[str, Any]:
        """Return all attributes, as JSON can hold them."""
        return {**asdict(self), "path": os.fspath(self.path)}

    def to_json(self) -> str:
        """Return all attributes as one line of JSON."""
        return json.dumps(self.asdict())


def pack(
    prefix: StrPath,
    output: StrPath | None = None,
    *,
    level: int | None = None,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    home: StrPath | None = None,
    exclude: Sequence[str] = (),
    force: bool = False,
    say: Callable[[str], None] | None = None,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> PackResult:
    """Pack a conda environment or a venv.

    Parameters
    ----------
    prefix : str or os.PathLike
        The environment's root folder. It is only read.
    output : str or os.PathLike, optional
        The archive (default: a file below `home`, see `envpack.pack.store`).
    level : int, optional
        zstd's compression level, 1 to 19 (default: 5).
    jobs : int, optional
        Number of threads (default: the CPUs that this process may use, 16 at most).
    progress : callable, optional
        Called as `progress(done_bytes, total_bytes)`, of uncompressed bytes.
    home : str or os.PathLike, optional
        mpiboot's folder on the shared file system (default: MPIBOOT_HOME, then ~/.mpiboot).
    exclude : sequence of str, optional
        What to leave out: shell patterns, see `envpack.pack.walk`.
    force : bool, default False
        Pack everything anew: do not reuse an archive, and copy nothing from an older one.
    say : callable, optional
        Called with one line if another pack of the environment must be waited for (default: log it as a warning).
    lock_timeout_s : float, optional
        How long to wait for another pack of the environment, in seconds (default: 10 minutes).

    Returns
    -------
    PackResult
        Its `reused` is true if the environment had not changed.

    Raises
    ------
    NotAnEnvironmentError
        The prefix is neither a conda environment nor a venv.
    BrokenEnvironmentError
        Something in the environment cannot be read, or changed meanwhile.
    NoSpaceError, PackFailedError
        The archive cannot be written. As after every error, nothing is left of it.
    """
    began = time.perf_counter()
    prefix = Path(os.path.abspath(prefix))  # noqa: PTH100
    if level is not None and not 1 <= level <= 19:
        raise ValueError(f"level must be 1 to 19, not {level}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    kind = _kind(prefix)
    folder = store.folder_for(prefix, home) if output is None else _output_folder(Path(output), prefix)
    output = None if output is None else folder / Path(output).name
    with named_errors(prefix, folder), _no_cycle_collector():
        walk = walk_environment(prefix, kind, exclude)
        state = store.environment_state(walk, exclude)

        known: dict[Path, Index] = {}

        def reused(archives: Iterable[Path]) -> PackResult | None:
            for path in [] if force else archives:
                index = store.usable(path)
                if index is None:
                    continue
                known[path] = index
                if store.is_of_state(index, state, level):
                    with contextlib.suppress(OSError):
                        os.utime(path)  # so that it stays; not on a read-only file system
                    return _result(path, index, walk, began, reused=True)
            return None

        before = _archives(folder, output)
        if result := reused(before):
            return result
        if output is None:
            make_private_folder(folder)
        lock = store.locked(folder / ".lock", lock_timeout_s, say) if output is None else None
        with lock or contextlib.nullcontext():
            archives = _archives(folder, output)
            # Another process may have packed it meanwhile.
            if archives != before and (result := reused(archives)):
                return result
            store.remove_unfinished(folder)
            meta = {
                **state,
                "name": store.safe_name(prefix.name),
                "level": level or DEFAULT_LEVEL,
            }
            collected = collect(walk)
            older = None if force else _older(archives, known, meta, rules(collected))

            def write(older: OlderArchive | None) -> tuple[Path, Index, int]:
                return write_archive(
                    collected,
                    prefix,
                    folder,
                    output,
                    meta=meta,
                    jobs=jobs or min(MAX_JOBS, len(os.sched_getaffinity(0))),
                    older=older,
                    progress=progress,
                )

            try:
                path, index, copied = write(older)
            except CorruptArchiveError:
                assert older is not None
                note_damage(older.path)
                path, index, copied = write(None)
            finally:
                if older:
                    older.close()
            mark(path).unlink(missing_ok=True)
            if output is None:
                store.remove_old(folder, path)
        return _result(path, index, walk, began, frames_copied=copied)


def unchanged_archive(
    prefix: StrPath, *, home: StrPath | None = None, exclude: Sequence[str] = ()
) -> Path | None:
    """Find the archive that `pack` would reuse; nothing is written.

    Parameters
    ----------
    prefix : str or os.PathLike
        The environment's root folder.
    home : str or os.PathLike, optional
        mpiboot's folder on the shared file system (default: MPIBOOT_HOME, then ~/.mpiboot).
    exclude : sequence of str, optional
        What `pack` would leave out.

    Returns
    -------
    Path or None
        None if the environment has not been packed, or has changed since.

    Raises
    ------
    NotAnEnvironmentError
        The prefix is neither a conda environment nor a venv.
    BrokenEnvironmentError
        Something in the environment cannot be read.
    """
    prefix = Path(os.path.abspath(prefix))  # noqa: PTH100
    kind = _kind(prefix)
    folder = store.folder_for(prefix, home)
    with named_errors(prefix, folder), _no_cycle_collector():
        state = store.environment_state(walk_environment(prefix, kind, exclude), exclude)
        for path in store.newest_first(folder):
            index = store.usable(path)
            if index is not None and store.is_of_state(index, state, None):
                return path
        return None


@contextlib.contextmanager
def _no_cycle_collector() -> Iterator[None]:
    """Pause Python's collector of cycles: it would go through a growing million of objects, which have none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _output_folder(output: Path, prefix: Path) -> Path:
    folder = Path(os.path.abspath(output)).parent  # noqa: PTH100
    if not os.path.isdir(folder):  # noqa: PTH112
        raise BrokenEnvironmentError(
            f"cannot write {output}: the folder {folder} does not exist",
            f"Make it: mkdir -p {quote(str(folder))}",
        )
    if os.path.isdir(output):  # noqa: PTH112
        raise BrokenEnvironmentError(
            f"cannot write {output}: it is a folder",
            f"Name a file: --output {quote(f'{output}/env.tar.zst')}",
        )
    if folder.resolve().is_relative_to(prefix.resolve()):
        raise BrokenEnvironmentError(
            f"cannot write {output}: it lies in the environment that is to be packed",
            "Choose another --output",
        )
    return folder


def _archives(folder: Path, output: Path | None) -> dict[Path, float]:
    """Return the archives that may be this environment's, the newest first, and when they were made or used last."""
    if output is None:
        return store.newest_first(folder)
    return {output: output.stat().st_mtime} if output.exists() else {}


def _older(
    archives: Iterable[Path], known: dict[Path, Index], meta: dict[str, Any], rules: str
) -> OlderArchive | None:
    """Open the newest archive whose frames may be copied: one of this environment, with this compression."""
    for path in archives:
        if is_damaged(path):
            continue
        try:
            older = OlderArchive(path, rules, known.get(path))
        except ArchiveError:
            continue
        if all(older.index.meta.get(key) == meta[key] for key in ("prefix", "level")):
            return older
        older.close()
    return None


def _kind(prefix: Path) -> str:
    try:
        if not prefix.is_dir():
            raise NotAnEnvironmentError(f"no environment {prefix}: there is no such folder", NAME_IT)
        if kind := kind_of(prefix):
            return kind
    except OSError as exc:
        raise BrokenEnvironmentError(
            f"cannot read {prefix} on {host_name()}: {exc.strerror}",
            f"Make it readable: ls -ld {quote(os.fspath(prefix))}",
        ) from exc
    raise NotAnEnvironmentError(
        f"{prefix} is not an environment: it has neither conda-meta/ (a conda environment) nor pyvenv.cfg (a venv)",
        NAME_IT,
    )


def _result(
    path: Path, index: Index, walk: Walk, began: float, *, reused: bool = False, frames_copied: int = 0
) -> PackResult:
    return PackResult(
        path=Path(os.path.abspath(path)),  # noqa: PTH100
        pack_id=index.pack_id,
        name=index.name,
        size_bytes=path.stat().st_size,
        raw_bytes=index.size_bytes,
        files=len(index) - len(index.folders),
        seconds=round(time.perf_counter() - began, 6),
        reused=reused,
        kind=index.kind,
        warnings=(*walk.warnings, *outside_warnings(walk), *index.meta.get("warnings", ())),
        excluded=tuple(map(os.fsdecode, walk.excluded)),
        excluded_bytes=walk.excluded_bytes,
        frames_copied=frames_copied,
    )
