"""Find all paths by which the files of an environment may name it. Only `envpack.pack.archive_writer` imports this."""

from __future__ import annotations

import os
import re
from pathlib import Path

from envpack.pack.members import FILE, Member

_VIRTUAL_ENV = re.compile(rb"""^\s*(?:export\s+)?VIRTUAL_ENV=(['"]?)(/[^'"\n]+)\1\s*$""", re.MULTILINE)


def names_of(prefix: Path, members: list[Member]) -> list[bytes]:
    """Return all paths by which files of a prefix may name it: as given, with symlinks followed, and as its scripts say.

    Parameters
    ----------
    prefix : Path
        The environment's root folder, an absolute path.
    members : list[Member]
        The environment's members.

    Returns
    -------
    list[bytes]
        Each name once, `prefix` first.
    """
    names = [os.fsencode(prefix), os.fsencode(prefix.resolve())]
    candidates: set[bytes] = set()
    for member in members:
        if member.kind != FILE or not member.source or not member.path.startswith(b"bin/"):
            continue
        try:
            with open(member.source, "rb") as file:  # noqa: PTH123
                start = file.read(4096)
        except OSError:
            continue
        if start.startswith(b"#!"):
            interpreter = start[2:].partition(b"\n")[0].strip()
            candidates.add(interpreter.rpartition(b"/bin/")[0])
        elif member.path in (b"bin/activate", b"bin/activate.csh"):
            candidates.update(match.group(2) for match in _VIRTUAL_ENV.finditer(start))
    for candidate in sorted(candidates):
        if candidate.startswith(b"/") and candidate not in names and _same(candidate, names[0]):
            names.append(candidate)
    return list(dict.fromkeys(names))


def _same(path: bytes, other: bytes) -> bool:
    try:
        return os.path.samefile(path, other)  # noqa: PTH121
    except OSError:
        return False
