"""Pack an environment into one archive, once: what has not changed is not packed again.

Without `output`, archives lie in `$MPIBOOT_HOME/packs/<name>-<hash of the prefix>/`, named by their pack id. A newer one
never replaces an older one there, as a waiting or running job may have been given its path: the newest three stay, and
of the others those that were made or asked for within two weeks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from array import array
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envpack.archive.index import FRAME_BYTES, Index, content_id, encode_index, read_index
from envpack.common import places
from envpack.common.locks import open_lock_file, try_lock, wait_for_lock
from envpack.common.mounts import file_system
from envpack.common.prefix import kind_of
from envpack.errors import ArchiveError, BrokenEnvironmentError, EnvpackError, NotAnEnvironmentError
from envpack.pack import conda as condaenv
from envpack.pack import venv
from envpack.pack.fingerprint import fingerprints
from envpack.pack.framing import FrameWriter
from envpack.pack.members import DIRECTORY, FILE, HARDLINK, SYMLINK, Member, arrange
from envpack.pack.names import editable_warnings, names_of
from envpack.pack.pyc import Compiler
from envpack.pack.scan import Scanner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envpack.common.places import StrPath

DEFAULT_LEVEL = 5
KEPT_ARCHIVES = 3
KEPT_S = 14 * 86400.0


@dataclass(frozen=True)
class PackResult:
    """How a packing went."""

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
        return {**asdict(self), "path": os.fspath(self.path)}

    def to_json(self) -> str:
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
        The archive (default: a file of ours below `home`).
    level : int, optional
        Of zstd, 1 to 19 (default 5).
    jobs : int, optional
        Threads (default: the CPUs this process may use).
    progress : callable, optional
        Called as `progress(done_bytes, total_bytes)`.
    home : str or os.PathLike, optional
        Default MPIBOOT_HOME, then ~/.mpiboot.

    Returns
    -------
    PackResult
        Its `reused` is true where the environment had not changed.

    Raises
    ------
    NotAnEnvironmentError, BrokenEnvironmentError
        Nothing is then left of the archive.
    """
    began = time.perf_counter()
    prefix = Path(os.path.abspath(prefix))  # noqa: PTH100
    if level is not None and not 1 <= level <= 19:
        raise ValueError(f"level must be 1 to 19, not {level}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    kind = _kind(prefix)
    name = safe_name(prefix.name)
    wanted = _wanted(prefix, kind)
    if output is None:
        folder = _folder(prefix, home)
        # One by one, as mkdir gives parents the umask's mode.
        for path in (folder.parent.parent, folder.parent, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        candidates = _newest_first(folder)
    else:
        output = Path(output)
        folder = output.parent
        candidates = [output] if output.exists() else []
        if not folder.is_dir():
            raise BrokenEnvironmentError(
                f"cannot write {output}: the folder {folder} does not exist; make it"
            )
        if folder.resolve().is_relative_to(prefix.resolve()):
            raise BrokenEnvironmentError(
                f"cannot write {output}: it lies in the environment that is to be packed; choose another --output"
            )
    with _locked(folder / ".lock" if output is None else None):
        for path in candidates:
            index = _reusable(path, wanted, level)
            if index is not None:
                os.utime(path)
                return _result(path, index, began, reused=True)
        _sweep(folder)
        writer = _Writer(
            prefix, kind, name, level or DEFAULT_LEVEL, jobs or len(os.sched_getaffinity(0)), progress
        )
        path, index = writer.write(folder, output, wanted)
        if output is None:
            _remove_old(folder, path)
    return _result(path, index, began, reused=False)


def packed(prefix: StrPath, *, home: StrPath | None = None) -> Path | None:
    """Find the archive that `pack` would use again; nothing is written.

    Parameters
    ----------
    prefix : str or os.PathLike
        The environment's root folder.
    home : str or os.PathLike, optional
        Default MPIBOOT_HOME, then ~/.mpiboot.

    Returns
    -------
    Path or None
        None where the environment has not been packed, or has changed since.
    """
    prefix = Path(os.path.abspath(prefix))  # noqa: PTH100
    kind = _kind(prefix)
    wanted = _wanted(prefix, kind)
    candidates = _newest_first(_folder(prefix, home))
    return next((path for path in candidates if _reusable(path, wanted, None) is not None), None)


def _folder(prefix: Path, home: StrPath | None) -> Path:
    hashed = hashlib.sha256(os.fsencode(prefix)).hexdigest()[:12]
    return Path(home or places.home()) / "packs" / f"{safe_name(prefix.name)}-{hashed}"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar.zst"), key=lambda path: path.stat().st_mtime, reverse=True)


def safe_name(name: str) -> str:
    """Return an environment's name as it can stand in a file name, a first line, or an unquoted shell word."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name)[:40].lstrip(".-") or "env"


def _wanted(prefix: Path, kind: str) -> dict[str, str]:
    """Return what an archive's index says of an environment that has not changed since."""
    left_out = condaenv.LEFT_OUT if kind == "conda" else ()
    return {
        "prefix": os.fspath(prefix),
        "kind": kind,
        "file_system": file_system(prefix)[0],
        **fingerprints(prefix, left_out),
    }


def _kind(prefix: Path) -> str:
    if not prefix.is_dir():
        raise NotAnEnvironmentError(f"no environment {prefix}: there is no such folder; check --prefix")
    if kind := kind_of(prefix):
        return kind
    raise NotAnEnvironmentError(
        f"{prefix} is no environment: it has neither conda-meta/ (a conda environment) nor pyvenv.cfg (a venv); "
        "name the environment's root folder with --prefix"
    )


def _reusable(path: Path, wanted: dict[str, str], level: int | None) -> Index | None:
    try:
        index = read_index(path)
    except ArchiveError:
        return None
    seen_alike = index.meta.get("file_system") == wanted["file_system"]
    for key in ("prefix", "kind", "fingerprint" if seen_alike else "fingerprint_s"):
        if index.meta.get(key) != wanted[key]:
            return None
    return index if level in (None, index.meta.get("level")) else None


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


class _Writer:
    def __init__(
        self,
        prefix: Path,
        kind: str,
        name: str,
        level: int,
        jobs: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._prefix = prefix
        self._kind = kind
        self._name = name
        self._level = level
        self._jobs = jobs
        self._progress = progress

    def write(self, folder: Path, output: Path | None, wanted: dict[str, str]) -> tuple[Path, Index]:
        """Write an archive beside its destination, then give it its name."""
        collect = condaenv.collect if self._kind == "conda" else venv.collect
        found, warnings = collect(self._prefix)
        members = arrange(found, _folder_modes(self._prefix, found))
        scanner = Scanner(names_of(self._prefix, members))
        fd, temporary = tempfile.mkstemp(prefix=".envpack-", suffix=".tmp", dir=folder)
        try:
            with os.fdopen(fd, "wb") as file, Compiler(self._prefix, members, self._jobs) as compiler:
                with contextlib.suppress(OSError):
                    try_lock(file.fileno(), temporary)
                total = sum(member.size for member in members)
                frames = FrameWriter(file, self._level, self._jobs, scanner, _counted(self._progress, total))
                written: list[Member] = []
                frames.write(_noting(compiler.members(), written))
                frames.finish(written)
                index = self._index(written, scanner, frames, compiler)
                index.meta["warnings"] = [
                    *warnings,
                    *compiler.warnings,
                    *editable_warnings(self._prefix, members),
                ]
                index.meta.update(wanted)
                index.meta["pack_id"] = content_id(index)
                file.write(encode_index(index))
                file.flush()
                os.fsync(file.fileno())
                path = output or folder / f"{self._name}-{index.pack_id[:16]}.tar.zst"
                Path(temporary).replace(path)
        except OSError as exc:
            raise EnvpackError(f"cannot write an archive in {folder}: {exc}") from exc
        finally:
            Path(temporary).unlink(missing_ok=True)
        return path, index

    def _index(
        self, members: list[Member], scanner: Scanner, frames: FrameWriter, compiler: Compiler
    ) -> Index:
        index = Index()
        index.paths = [member.path for member in members]
        kinds = [member.kind for member in members]
        index.set_counts(*(kinds.count(kind) for kind in (DIRECTORY, FILE, HARDLINK, SYMLINK)))
        index.modes = array("H", (member.mode for member in members))
        index.mtimes_ns = array(
            "q", (0 if member.kind == DIRECTORY else member.mtime_ns for member in members)
        )
        index.sizes = array("Q", (member.size if member.kind == FILE else 0 for member in members))
        index.offsets = array("Q", (member.offset for member in members))
        index.digests = b"".join(member.digest for member in members)
        index.links = {number: member.link for number, member in enumerate(members) if member.link}
        index.frame_sizes = array("I", frames.sizes)
        index.frame_raw_sizes = array("I", frames.raw_sizes)
        index.frame_checks = array("I", frames.checks)
        relocated = {member.path: number for number, member in enumerate(members) if member.record}
        index.meta = {
            "name": self._name,
            "level": self._level,
            "part_bytes": FRAME_BYTES,
            "placeholders": [os.fsdecode(value) for value in scanner.placeholders],
            "relocations": [[number, *members[number].record] for number in relocated.values()],
            "compile": [
                [relocated[source], os.fsdecode(pyc)]
                for source, pyc in compiler.wanted
                if source in relocated
            ],
            "python": compiler.python,
            "made_at": time.time(),
        }
        index.meta["kind"] = self._kind
        return index


def _noting(members: Iterator[Member], written: list[Member]) -> Iterator[Member]:
    for member in members:
        written.append(member)
        yield member


def _counted(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        progress(min(done, total), total)

    return add


def _folder_modes(prefix: Path, members: list[Member]) -> dict[bytes, int]:
    top = os.fsencode(prefix)
    modes: dict[bytes, int] = {}
    for member in members:
        parent = member.path.rpartition(b"/")[0]
        while parent and parent not in modes:
            try:
                modes[parent] = os.lstat(top + b"/" + parent).st_mode & 0o777
            except OSError:
                modes[parent] = 0o755
            parent = parent.rpartition(b"/")[0]
    return modes


class _locked:
    """Hold a lock file while packing into a folder of ours: a second pack then finds the first one's archive."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> None:
        if self._path is None:
            return
        self._fd = open_lock_file(self._path)
        # On a file system without locks both pack, and each publishes a whole archive.
        with contextlib.suppress(OSError):
            wait_for_lock(self._fd)

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _sweep(folder: Path) -> None:
    """Remove what killed packs left: temporary files that nobody holds."""
    for path in folder.glob(".envpack-*.tmp"):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if try_lock(fd, path):
                path.unlink(missing_ok=True)
        except OSError:
            pass
        finally:
            os.close(fd)


def _remove_old(folder: Path, newest: Path) -> None:
    archives = sorted(folder.glob("*.tar.zst"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in archives[KEPT_ARCHIVES:]:
        if path != newest and time.time() - path.stat().st_mtime > KEPT_S:
            path.unlink(missing_ok=True)
