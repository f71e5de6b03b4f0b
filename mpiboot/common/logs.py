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


def end_of_ranks_log(path: Path) -> str:
    """Return the end of a log for an error message. Of a traceback, such as that of a worker's start, its last line."""
    kept, inside = [], True  # the end may begin within a traceback
    for line in tail(path, size_bytes=6000).splitlines():
        starts = line.startswith(("Traceback (most recent call last)", 'File "'))
        inside = starts or (inside and line.startswith("  "))
        if not inside:
            kept.append(line)
    return "\n".join(kept)[-3000:] or EMPTY
