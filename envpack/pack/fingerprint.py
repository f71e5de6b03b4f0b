"""Tell from `lstat` results alone whether an environment has changed. Only `envpack.pack.store` imports this."""

from __future__ import annotations

import hashlib
import stat
from typing import TYPE_CHECKING

from envpack.archive.encoding import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envpack.pack.walk import Entry


def fingerprints(entries: Iterable[Entry]) -> dict[str, str]:
    """Return digests that change with every change of what would be packed.

    `fingerprint` covers path, mode, size, modification time, inode number and status change time, so an edit that
    restores size and modification time changes it too. So does a new hard link that conda or uv makes to a file: the
    environment is then read again, and its pack id stays. `fingerprint_s` lacks inode numbers, status change times and
    fractions of a second: it serves to compare an environment that is seen through another file system, such as sshfs.

    `__pycache__` folders and the `.pyc` files in them do not count: imports fill them, and packing compiles what is
    missing.

    Parameters
    ----------
    entries : iterable of Entry
        What is packed, from `walk_environment`: in the order of their paths.

    Returns
    -------
    dict[str, str]
        `fingerprint` and `fingerprint_s`.
    """
    lines = []
    coarse = []
    for entry in entries:
        path, info = entry.path, entry.info
        if path.endswith((b".pyc", b"__pycache__")):
            folder, _, name = path.rpartition(b"/")
            if name == b"__pycache__" or folder.rpartition(b"/")[2] == b"__pycache__":
                continue
        if stat.S_ISDIR(info.st_mode):
            lines.append(b"%s %o" % (path, info.st_mode))
            coarse.append(lines[-1])
            continue
        seen = b"%s %o %d %s" % (path, info.st_mode, info.st_size, entry.link or b"")
        lines.append(b"%s %d %d %d" % (seen, info.st_mtime_ns, info.st_ino, info.st_ctime_ns))
        coarse.append(b"%s %d" % (seen, info.st_mtime_ns // 1_000_000_000))
    return {"fingerprint": _hash_lines(lines), "fingerprint_s": _hash_lines(coarse)}


def _hash_lines(lines: list[bytes]) -> str:
    return hashlib.sha256(b"envpack %d\n" % VERSION + b"\n".join(lines)).hexdigest()
