"""Find all paths by which the files of an environment may name it. Only `envpack.pack.collect` imports this."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envpack.pack.walk import Walk

# Activation scripts are longer than the first lines of a script, and hold the prefix anywhere.
_READ_BYTES = 1 << 16
_ACTIVATION = re.compile(rb"(?i)bin/(?:de)?activate")
_FIRST_LINES = re.compile(rb"#![^\n]*(?:\n'''exec' [^\n]*)?")
# A path, in quotes or without.
_PATH = re.compile(rb"""(?<!["'])(/[^\s"'`$:;,|&<>()]+)|"(/[^"\n]+)"|'(/[^'\n]+)'""")


def names_of(walk: Walk) -> list[bytes]:
    """Return all paths by which files of a prefix may name it: as given, with symlinks followed, and as its scripts say.

    The scripts are those that installers write: first lines, also those for long paths (`'''exec'`), and activation
    scripts; and `pyvenv.cfg`.

    Parameters
    ----------
    walk : Walk
        The environment.

    Returns
    -------
    list[bytes]
        Each name once, the prefix first.
    """
    top = os.fsencode(walk.prefix)
    names = dict.fromkeys([top, os.fsencode(walk.prefix.resolve())])
    seen: set[bytes] = set()
    for entry in walk.entries:
        if entry.link is not None or not (entry.path.startswith(b"bin/") or entry.path == b"pyvenv.cfg"):
            continue
        if not os.path.isfile(entry.source):  # noqa: PTH113
            continue
        with open(entry.source, "rb") as file:  # noqa: PTH123
            text = file.read(_READ_BYTES if entry.info.st_size <= _READ_BYTES else 2)
            if text == b"#!":
                text += file.read(_READ_BYTES)
        if not _ACTIVATION.match(entry.path) and entry.path != b"pyvenv.cfg":
            first = _FIRST_LINES.match(text)
            text = first.group() if first else b""
        for match in _PATH.finditer(text):
            path = match.group(match.lastindex or 0)
            # The prefix itself, or a program of it.
            seen.update((path, path.partition(b"/bin/")[0], path.rpartition(b"/bin/")[0]))
    for path in sorted(seen - names.keys()):
        if path.startswith(b"/") and _same(path, top):
            names[path.rstrip(b"/")] = None
    return list(names)


def _same(path: bytes, other: bytes) -> bool:
    try:
        return os.path.samefile(path, other)  # noqa: PTH121
    except (OSError, ValueError):
        return False
