"""Pack an environment into one archive; an environment that has not changed is not packed again.

`envpack pack` and mpiboot call this. Packing runs on login nodes, and may import anything that envpack requires.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from envpack.common.places import HOME_VARIABLE
from envpack.common.prefix import kind_of
from envpack.errors import BrokenEnvironmentError, EnvpackError, NotAnEnvironmentError
from envpack.pack import store
from envpack.pack.archive_writer import ArchiveWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from envpack.archive.index import Index
    from envpack.common.places import StrPath

DEFAULT_LEVEL = 5
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
        Number of threads (default: the CPUs that this process may use).
    progress : callable, optional
        Called as `progress(done_bytes, total_bytes)`, of uncompressed bytes.
    home : str or os.PathLike, optional
        mpiboot's folder on the shared file system (default: MPIBOOT_HOME, then ~/.mpiboot).

    Returns
    -------
    PackResult
        Its `reused` is true if the environment had not changed.

    Raises
    ------
    NotAnEnvironmentError, BrokenEnvironmentError, EnvpackError
        Nothing is then left of the archive.
    """
    began = time.perf_counter()
    prefix = Path(os.path.abspath(prefix))  # noqa: PTH100
    if level is not None and not 1 <= level <= 19:
        raise ValueError(f"level must be 1 to 19, not {level}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    kind = _kind(prefix)
    name = store.safe_name(prefix.name)
    state = store.environment_state(prefix, kind)
    if output is None:
        folder = store.folder_for(prefix, home)
        # One by one, as mkdir gives only the last folder this mode.
        for path in (folder.parent.parent, folder.parent, folder):
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise EnvpackError(
                    f"cannot make the folder {path}: {error.strerror}",
                    f"Set {HOME_VARIABLE} to a folder on the shared file system that you can write",
                ) from error
        candidates = store.newest_first(folder)
    else:
        output = Path(output)
        folder = output.parent
        candidates = [output] if output.exists() else []
        if not folder.is_dir():
            raise BrokenEnvironmentError(
                f"cannot write {output}: the folder {folder} does not exist",
                f"Make it: mkdir -p {quote(str(folder))}",
            )
        if folder.resolve().is_relative_to(prefix.resolve()):
            raise BrokenEnvironmentError(
                f"cannot write {output}: it lies in the environment that is to be packed",
                "Choose another --output",
            )
    with store.Locked(folder / ".lock" if output is None else None):
        for path in candidates:
            index = store.reusable(path, state, level)
            if index is not None:
                os.utime(path)
                return _result(path, index, began, reused=True)
        store.remove_unfinished(folder)
        writer = ArchiveWriter(
            prefix, kind, name, level or DEFAULT_LEVEL, jobs or len(os.sched_getaffinity(0)), progress
        )
        path, index = writer.write(folder, output, state)
        if output is None:
            store.remove_old(folder, path)
    return _result(path, index, began, reused=False)


def unchanged_archive(prefix: StrPath, *, home: StrPath | None = None) -> Path | None:
    """Find the archive that `pack` would reuse; nothing is written.

    Parameters
    ----------
    prefix : str or os.PathLike
        The environment's root folder.
    home : str or os.PathLike, optional
        mpiboot's folder on the shared file system (default: MPIBOOT_HOME, then ~/.mpiboot).

    Returns
    -------
    Path or None
        None if the environment has not been packed, or has changed since.

    Raises
    ------
    NotAnEnvironmentError
        The prefix is neither a conda environment nor a venv.
    """
    prefix = Path(os.path.abspath(prefix))  # noqa: PTH100
    kind = _kind(prefix)
    state = store.environment_state(prefix, kind)
    candidates = store.newest_first(store.folder_for(prefix, home))
    return next((path for path in candidates if store.reusable(path, state, None) is not None), None)


def _kind(prefix: Path) -> str:
    if not prefix.is_dir():
        raise NotAnEnvironmentError(f"no environment {prefix}: there is no such folder", NAME_IT)
    if kind := kind_of(prefix):
        return kind
    raise NotAnEnvironmentError(
        f"{prefix} is not an environment: it has neither conda-meta/ (a conda environment) nor pyvenv.cfg (a venv)",
        NAME_IT,
    )


def _result(path: Path, index: Index, began: float, *, reused: bool) -> PackResult:
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
        warnings=tuple(index.meta.get("warnings", ())),
    )
