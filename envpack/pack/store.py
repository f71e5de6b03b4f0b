"""Where archives lie, which of them is the archive of an environment as it is now, and which may be removed.

Without `--output`, archives lie in `$MPIBOOT_HOME/packs/<name>-<hash of the prefix>/`, and their pack ids name them. A
newer one never replaces an older one there, as a waiting or running job may have the older one's path: the newest three
stay, and of the others those that were made or reused within two weeks. Only `envpack.pack.packing` imports this module.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.archive.encoding import read_index
from envpack.common import places
from envpack.common.locks import open_lock_file, try_lock, wait_for_lock
from envpack.common.mounts import file_system
from envpack.errors import ArchiveError
from envpack.pack import conda as condaenv
from envpack.pack.fingerprint import fingerprints

if TYPE_CHECKING:
    from envpack.archive.index import Index
    from envpack.common.places import StrPath

KEPT_ARCHIVES = 3
KEPT_S = 14 * 86400.0


def folder_for(prefix: Path, home: StrPath | None) -> Path:
    """Return the folder of an environment's archives below a home (default: MPIBOOT_HOME, then ~/.mpiboot)."""
    hashed = hashlib.sha256(os.fsencode(prefix)).hexdigest()[:12]
    return Path(home or places.default_home()) / "packs" / f"{safe_name(prefix.name)}-{hashed}"


def newest_first(folder: Path) -> list[Path]:
    """Return the archives in a folder, those made or reused last first."""
    return sorted(folder.glob("*.tar.zst"), key=lambda path: path.stat().st_mtime, reverse=True)


def safe_name(name: str) -> str:
    """Return an environment's name without characters that would need quotes in a file name, first line or shell."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name)[:40].lstrip(".-") or "env"


def environment_state(prefix: Path, kind: str) -> dict[str, str]:
    """Return an environment's state: the part of an archive's index that must be equal for the archive to be reused."""
    omitted = condaenv.OMITTED if kind == "conda" else ()
    return {
        "prefix": os.fspath(prefix),
        "kind": kind,
        "file_system": file_system(prefix)[0],
        **fingerprints(prefix, omitted),
    }


def reusable(path: Path, state: dict[str, str], level: int | None) -> Index | None:
    """Return the index of an archive if it is the archive of an environment in this state; None if it is not.

    Parameters
    ----------
    path : Path
        The archive.
    state : dict[str, str]
        The environment's state, from `environment_state`.
    level : int or None
        The compression level that it must have (None: any).
    """
    try:
        index = read_index(path)
    except ArchiveError:
        return None
    same_file_system = index.meta.get("file_system") == state["file_system"]
    for key in ("prefix", "kind", "fingerprint" if same_file_system else "fingerprint_s"):
        if index.meta.get(key) != state[key]:
            return None
    return index if level in (None, index.meta.get("level")) else None


class Locked:
    """A context manager that holds a lock file (None: no lock): a second pack waits, then reuses the archive."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> None:
        if self._path is None:
            return
        self._fd = open_lock_file(self._path)
        # On a file system without locks, both pack, and each publishes a complete archive.
        with contextlib.suppress(OSError):
            wait_for_lock(self._fd)

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of killed packs: those that no process has locked."""
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


def remove_old(folder: Path, newest: Path) -> None:
    """Remove archives that are neither the newest nor among those that the module's docstring keeps."""
    for path in newest_first(folder)[KEPT_ARCHIVES:]:
        if path != newest and time.time() - path.stat().st_mtime > KEPT_S:
            path.unlink(missing_ok=True)
