"""Has an environment changed since it was packed? Answered from `lstat`s alone."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.archive import OWN_FOLDER, VERSION

if TYPE_CHECKING:
    from collections.abc import Collection

_SKIPPED = (b"__pycache__", OWN_FOLDER)


def fingerprint(prefix: Path, left_out: Collection[str] = ()) -> str:
    """Return a digest that changes when anything that would be packed does.

    `__pycache__` folders do not count: imports fill them, and packing makes what is missing. The time of the last
    change of a file's status counts too, where nothing but that file can have caused it: an edit that puts the old
    time and size back is seen. (A file with several names changes it whenever conda makes another.)

    Parameters
    ----------
    prefix : Path
    left_out : collection of str
        What is not packed of the prefix's own folder.
    """
    lines = []
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
                    continue
                ctime_ns = info.st_ctime_ns if info.st_nlink == 1 else 0
                lines.append(
                    b"%s %o %d %d %d %d"
                    % (path, info.st_mode, info.st_size, info.st_mtime_ns, info.st_ino, ctime_ns)
                )
    lines.sort()
    return hashlib.sha256(b"envpack %d\n" % VERSION + b"\n".join(lines)).hexdigest()
