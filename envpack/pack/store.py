"""Where archives lie, which of them is the archive of an environment as it is now, and which may be removed.

Without `--output`, archives lie in `$MPIBOOT_HOME/packs/<name>-<hash of the prefix>/`, and their pack ids name them. A
newer one replaces an older one there only if it has the same content, as a waiting or running job may have the older
one's path: such a job has a lease, an empty file `ARCHIVE.lease-<name>`. The newest three archives stay, those with
leases, and of the others those that were made or reused within two weeks. `envpack gc --packs` keeps only the newest, and
those with leases.

`envpack.pack.packing`, the command and mpiboot's client import this module.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.archive.damage import is_damaged, mark
from envpack.archive.encoding import read_index
from envpack.common import places
from envpack.common.locks import take_lock, try_lock
from envpack.common.mounts import file_system
from envpack.errors import ArchiveError, PackFailedError
from envpack.pack.fingerprint import fingerprints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from envpack.archive.index import Index
    from envpack.common.places import StrPath
    from envpack.pack.walk import Walk

KEPT_ARCHIVES = 3
KEPT_S = 14 * 86400.0
_LEASE = ".lease-"
# A network file system without a lock daemon, or one that has no locks (flock(2)).
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def packs_folder(home: StrPath | None) -> Path:
    """Return the folder of all archives below a home (default: MPIBOOT_HOME, then ~/.mpiboot)."""
    return Path(home or places.default_home()) / "packs"


def folder_for(prefix: Path, home: StrPath | None) -> Path:
    """Return the folder of an environment's archives below a home."""
    hashed = hashlib.sha256(os.fsencode(prefix)).hexdigest()[:12]
    return packs_folder(home) / f"{safe_name(prefix.name)}-{hashed}"


def newest_first(folder: Path) -> dict[Path, float]:
    """Return the archives in a folder, those made or reused last first, and when that was: seconds since 1970."""
    times = [(_modified(path), path) for path in folder.glob("*.tar.zst")]
    return {path: at for at, path in sorted(times, reverse=True) if at >= 0}


def _modified(path: Path) -> float:
    """Return a file's modification time; -1 if another process has removed it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return -1


def safe_name(name: str) -> str:
    """Return an environment's name without characters that would need quotes in a file name, first line or shell."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name)[:40].lstrip(".-") or "env"


def environment_state(walk: Walk, exclude: Sequence[str]) -> dict[str, object]:
    """Return an environment's state: the part of an archive's index that must be equal for the archive to be reused."""
    return {
        "prefix": os.fspath(walk.prefix),
        "kind": walk.kind,
        "exclude": sorted(set(exclude)),
        "file_system": file_system(walk.prefix)[0],
        **fingerprints(walk.entries),
    }


def usable(path: Path) -> Index | None:
    """Return the index of an archive; None if it is damaged, or cannot be read."""
    if is_damaged(path):
        return None
    try:
        return read_index(path)
    except ArchiveError:
        return None


def is_of_state(index: Index, state: dict[str, object], level: int | None) -> bool:
    """Tell whether an archive is that of an environment in this state.

    Parameters
    ----------
    index : Index
        The archive's index.
    state : dict[str, object]
        The environment's state, from `environment_state`.
    level : int or None
        The compression level that it must have (None: any).
    """
    same_file_system = index.meta.get("file_system") == state["file_system"]
    for key in ("prefix", "kind", "exclude", "fingerprint" if same_file_system else "fingerprint_s"):
        if index.meta.get(key) != state[key]:
            return False
    return level in (None, index.meta.get("level"))


@contextlib.contextmanager
def locked(path: Path, timeout_s: float, say: Callable[[str], None] | None) -> Iterator[None]:
    """Hold a lock file: a second pack of the environment waits, then reuses the archive."""
    fd = -1
    try:
        fd = take_lock(path, timeout_s, error=PackFailedError, say=say)
    except OSError as exc:
        # Without locks, both pack, and each publishes a complete archive.
        if exc.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def lease(archive: Path, name: str) -> None:
    """Keep an archive until its lease is removed; leases by several names may hold the same archive.

    Parameters
    ----------
    archive : Path
        The archive.
    name : str
        Who needs it: part of a file name.
    """
    archive.with_name(f"{archive.name}{_LEASE}{name}").touch(mode=0o600)


def leases(home: StrPath | None = None) -> dict[str, list[Path]]:
    """Return the lease files below a home, by the names that were given to `lease`."""
    found: dict[str, list[Path]] = {}
    for path in packs_folder(home).glob(f"*/*.tar.zst{_LEASE}*"):
        found.setdefault(path.name.partition(f".tar.zst{_LEASE}")[2], []).append(path)
    return found


def _is_leased(archive: Path) -> bool:
    return any(archive.parent.glob(glob.escape(archive.name + _LEASE) + "*"))


def remove_unfinished(folder: Path) -> dict[Path, int]:
    """Remove the temporary files of killed packs: those that no process has locked.

    Returns
    -------
    dict[Path, int]
        The files that were removed, and their sizes in bytes.
    """
    removed = {}
    for path in folder.glob(".envpack-*.tmp"):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if try_lock(fd, path):
                size_bytes = os.fstat(fd).st_size
                path.unlink(missing_ok=True)
                removed[path] = size_bytes
        except OSError:
            pass
        finally:
            os.close(fd)
    return removed


def remove_old(folder: Path, newest: Path) -> None:
    """Remove archives that are neither the newest nor among those that the module's docstring keeps."""
    for path, used_at in list(newest_first(folder).items())[KEPT_ARCHIVES:]:
        if path != newest and time.time() - used_at > KEPT_S:
            _remove(path)


def _remove(archive: Path) -> bool:
    """Remove an archive that has no lease; tell whether it is gone."""
    if _is_leased(archive):
        return False
    with contextlib.suppress(OSError):
        archive.unlink(missing_ok=True)
        mark(archive).unlink(missing_ok=True)
        return True
    return False


def gc(home: StrPath | None = None, *, older_than_s: float = 0.0, dry_run: bool = False) -> dict[Path, int]:
    """Remove all archives but the newest of each environment and those with leases, and what killed packs have left.

    An environment that was removed needs no archive.

    Parameters
    ----------
    home : str or os.PathLike, optional
        mpiboot's folder on the shared file system (default: MPIBOOT_HOME, then ~/.mpiboot).
    older_than_s : float, seconds, default 0
        Keep archives that were made or reused within this time.
    dry_run : bool, default False
        Remove no archive; return those that would be removed.

    Returns
    -------
    dict[Path, int]
        The files that were removed, and their sizes in bytes.
    """
    removed: dict[Path, int] = {}
    for folder in sorted(packs_folder(home).glob("*-*/")):
        archives = newest_first(folder)
        newest = next((path for path in archives if not is_damaged(path)), None)
        if newest and _is_of_removed(newest):
            newest = None
        for path, used_at in archives.items():
            size_bytes = _size(path)
            if (
                path != newest
                and (not older_than_s or time.time() - used_at > older_than_s)
                and (not _is_leased(path) if dry_run else _remove(path))
            ):
                removed[path] = size_bytes
        if dry_run:
            continue
        removed |= remove_unfinished(folder)
        for path in folder.glob("*.tar.zst.damaged"):
            with contextlib.suppress(OSError):
                if not path.with_suffix("").exists():
                    path.unlink(missing_ok=True)
                    removed[path] = 0
    return removed


def _is_of_removed(archive: Path) -> bool:
    """Tell whether an archive's environment is gone, and not only its file system."""
    index = usable(archive)
    prefix = Path(str(index.meta["prefix"])) if index else archive
    return prefix.parent.is_dir() and not prefix.exists()


def _size(path: Path) -> int:
    """Return a file's size in bytes; 0 if another process has removed it."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
