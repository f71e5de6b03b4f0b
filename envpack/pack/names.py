"""Find all paths by which the files of an environment may name it. Only `envpack.pack.collect` imports this."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from envpack.archive.index import show_path
from envpack.pack.walk import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envpack.pack.walk import Walk

# Activation scripts are longer than the first lines of a script, and hold the prefix anywhere.
_READ_BYTES = 1 << 16
_ACTIVATION = re.compile(rb"(?i)bin/(?:de)?activate")
_FIRST_LINES = re.compile(rb"#![^\n]*(?:\n'''exec' [^\n]*)?")
# A path, in quotes or without.
_PATH = re.compile(rb"""(?<!["'])(/[^\s"'`$:;,|&<>()]+)|"(/[^"\n]+)"|'(/[^'\n]+)'""")

# The Python that a script's first lines start.
_PYTHON = re.compile(rb"""\A#!\s*(?:/bin/sh\n'''exec' "?)?(/[^\n"]*?/(?:python|pypy)[0-9.]*)(?=[\s"]|\Z)""")
_SYSTEM = (b"/usr", b"/bin")


def names_of(walk: Walk, texts: dict[bytes, bytes]) -> list[bytes]:
    """Return all paths by which files of a prefix may name it: as given, with symlinks followed, and as its scripts say.

    The scripts are those that installers write: first lines, also those for long paths (`'''exec'`), and activation
    scripts; and `pyvenv.cfg`.

    Parameters
    ----------
    walk : Walk
        The environment.
    texts : dict[bytes, bytes]
        From `script_texts`.

    Returns
    -------
    list[bytes]
        Each name once, the prefix first.
    """
    top = os.fsencode(walk.prefix)
    names = dict.fromkeys([top, os.fsencode(walk.prefix.resolve())])
    seen: set[bytes] = set()
    for text in texts.values():
        for match in _PATH.finditer(text):
            path = match.group(match.lastindex or 0)
            # The prefix itself, or a program of it.
            seen.update((path, path.partition(b"/bin/")[0], path.rpartition(b"/bin/")[0]))
    for path in sorted(seen - names.keys()):
        if path.startswith(b"/") and _same(path, top):
            names[path.rstrip(b"/")] = None
    return list(names)


def foreign_interpreters(texts: dict[bytes, bytes], names: Sequence[bytes]) -> list[str]:
    """Return a warning that names scripts whose first line starts another environment's Python.

    So it is in an environment that was copied or moved after its scripts were made.

    Parameters
    ----------
    texts : dict[bytes, bytes]
        From `script_texts`.
    names : sequence of bytes
        What is relocated: all names of the prefix and of its base interpreter.
    """
    own = tuple(name.rstrip(b"/") + b"/" for name in (*names, *_SYSTEM))
    foreign = [
        f"{show_path(path)} ({os.fsdecode(match.group(1))})"
        for path, text in texts.items()
        if (match := _PYTHON.search(text)) and not match.group(1).startswith(own)
    ]
    if not foreign:
        return []
    return [
        "scripts that start another environment's Python, which is not packed; install their packages anew: "
        + listed(foreign)
    ]


def script_texts(walk: Walk) -> dict[bytes, bytes]:
    """Return the first lines of each script, and the whole of activation scripts and of `pyvenv.cfg`, by path."""
    texts = {}
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
        texts[entry.path] = text
    return texts


def _same(path: bytes, other: bytes) -> bool:
    try:
        return os.path.samefile(path, other)  # noqa: PTH121
    except (OSError, ValueError):
        return False
