"""Tell from `lstat` results alone whether an environment has changed. Only `envpack.pack.store` imports this."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.archive.encoding import VERSION
from envpack.archive.index import OWN_FOLDER

if TYPE_CHECKING:
    from collections.abc import Collection

_SKIPPED = (b"__pycache__", OWN_FOLDER)


def fingerprints(prefix: Path, omitted: Collection[str] = ()) -> dict[str, str]:
    """Return digests that change with every change of what would be packed.

    `fingerprint` covers path, mode, size, modification time, inode number and status change time, so an edit that
    restores size and modification time changes it too. The status change time of a file with several names is ignored,
    as it changes with every new hard link that conda makes. `fingerprint_s` lacks inode numbers, status change times and
    fractions of a second: it serves to compare an environment that is seen through another file system, such as sshfs.

    `__pycache__` folders do not count: imports fill them, and packing compiles what is missing.

    Parameters
    ----------
    prefix : Path
        The environment's root folder.
    omitted : collection of str
        Names in the root folder that are not packed.

    Returns
    -------
    dict[str, str]
        `fingerprint` and `fingerprint_s`.
    """
    lines = []
    coarse = []
    top = os.fsencode(prefix)
    skipped_here = {*_SKIPPED, *map(os.fsencode, omitted)}
    stack = [b""]
    while stack:
        folder = stack.pop()
        with os.scandir(top + b"/" + folder) as entries:
            for entry in entries:
                if entry.name in (_SKIPPED if folder else skipped_here):
                    continue
                path = folder + b"/" + entry.name if folder else entry.name
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    stack.append(path)
                    lines.append(b"%s %o" % (path, info.st_mode))
                    coarse.append(lines[-1])
                    continue
                ctime_ns = info.st_ctime_ns if info.st_nlink == 1 else 0
                seen = b"%s %o %d" % (path, info.st_mode, info.st_size)
                lines.append(b"%s %d %d %d" % (seen, info.st_mtime_ns, info.st_ino, ctime_ns))
                coarse.append(b"%s %d" % (seen, info.st_mtime_ns // 1_000_000_000))
    return {"fingerprint": _hash_lines(lines), "fingerprint_s": _hash_lines(coarse)}


def _hash_lines(lines: list[bytes]) -> str:
    return hashlib.sha256(b"envpack %d\n" % VERSION + b"\n".join(sorted(lines))).hexdigest()
