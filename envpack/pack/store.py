"""Where archives lie, which of them fits an environment as it is now, and which may be removed.

Without `output`, archives lie in `$MPIBOOT_HOME/packs/<name>-<hash of the prefix>/`, named by their pack id. A newer one
never replaces an older one there, as a waiting or running job may have been given its path: the newest three stay, and
of the others those that were made or asked for within two weeks.
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
    hashed = hashlib.sha256(os.fsencode(prefix)).hexdigest()[:12]
    return Path(home or places.home()) / "packs" / f"{safe_name(prefix.name)}-{hashed}"


def newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar.zst"), key=lambda path: path.stat().st_mtime, reverse=True)


def safe_name(name: str) -> str:
    """Return an environment's name as it can stand in a file name, a first line, or an unquoted shell word."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name)[:40].lstrip(".-") or "env"


def expected_meta(prefix: Path, kind: str) -> dict[str, str]:
    """Return what an archive's index says of an environment that has not changed since."""
    left_out = condaenv.LEFT_OUT if kind == "conda" else ()
    return {
        "prefix": os.fspath(prefix),
        "kind": kind,
        "file_system": file_system(prefix)[0],
        **fingerprints(prefix, left_out),
    }


def reusable(path: Path, wanted: dict[str, str], level: int | None) -> Index | None:
    try:
        index = read_index(path)
    except ArchiveError:
        return None
    seen_alike = index.meta.get("file_system") == wanted["file_system"]
    for key in ("prefix", "kind", "fingerprint" if seen_alike else "fingerprint_s"):
        if index.meta.get(key) != wanted[key]:
            return None
    return index if level in (None, index.meta.get("level")) else None


class Locked:
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


def remove_unfinished(folder: Path) -> None:
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


def remove_old(folder: Path, newest: Path) -> None:
    archives = sorted(folder.glob("*.tar.zst"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in archives[KEPT_ARCHIVES:]:
        if path != newest and time.time() - path.stat().st_mtime > KEPT_S:
            path.unlink(missing_ok=True)
