"""Reads the end of a log file. Client and boot may import this module."""

from __future__ import annotations

import contextlib
from pathlib import Path

EMPTY = "(empty)"
# A message shows this if the job has no log.
NO_LOG = "It left no log."


def tail(path: Path, *, size_bytes: int = 3000, lines: int | None = None) -> str:
    """Return the end of a log file, without reading what is before it.

    Parameters
    ----------
    path : Path
        The log file.
    size_bytes : int
        How much of its end is read at most.
    lines : int, optional
        How many lines are returned at most; None: all that were read.

    Returns
    -------
    str
        The text, stripped of whitespace at both ends; "(empty)" if the file is missing, empty or not readable.
    """
    text = ""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size_bytes))
        text = file.read(size_bytes).decode(errors="replace").strip()
    if lines is not None:
        text = "\n".join(text.splitlines()[-lines:])
    return text or EMPTY
