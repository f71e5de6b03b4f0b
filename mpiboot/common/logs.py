"""Reads the end of a log file, and leaves tracebacks out of it. Client and boot may import this module."""

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
    """Return the end of a log for an error message, without tracebacks, such as those of a worker's start."""
    return without_tracebacks(tail(path, size_bytes=6000))[-3000:] or EMPTY


def without_tracebacks(text: str) -> str:
    """Return what a Python program has printed, but of each traceback only its last line: the error.

    The text may begin within a traceback.
    """
    kept: list[str] = []
    indent: str | None = ""  # of the traceback that the line belongs to
    for line in text.splitlines():
        bare = line.lstrip()
        if bare.startswith(("Traceback (most recent call last)", 'File "')):
            indent = line[: len(line) - len(bare)] if indent is None or bare[0] == "T" else indent
        elif indent is None or not line.startswith(f"{indent}  "):
            indent = None
            kept.append(line)
    return "\n".join(kept)
