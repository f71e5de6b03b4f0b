"""Has an environment changed since it was packed? Answered from `lstat`s alone."""

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


def fingerprints(prefix: Path, left_out: Collection[str] = ()) -> dict[str, str]:
    """Return digests that change when anything that would be packed does.

    Through another file system (a home that a node mounts by sshfs, say) inode numbers, status times and fractions of
    a second are others, whatever has changed: `fingerprint_s` goes without them, and is for that case alone.

    `__pycache__` folders do not count: imports fill them, and packing makes what is missing. The time of the last
    change of a file's status counts too, where nothing but that file can have caused it: an edit that puts the old
    time and size back is seen. (A file with several names changes it whenever conda makes another.)

    Parameters
    ----------
    prefix : Path
    left_out : collection of str
        What is not packed of the prefix's own folder.

    Returns
    -------
    dict
        `fingerprint`, `fingerprint_s`.
    """
    lines = []
    coarse = []
    top = os.fsencode(prefix)
    skipped_here = {*_SKIPPED, *map(os.fsencode, left_out)}
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
    return {"fingerprint": _digest(lines), "fingerprint_s": _digest(coarse)}


def _digest(lines: list[bytes]) -> str:
    return hashlib.sha256(b"envpack %d\n" % VERSION + b"\n".join(sorted(lines))).hexdigest()
