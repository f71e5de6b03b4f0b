"""Reads log files: the end of one file, or the lines added to several. Client and boot may import this module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
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


class LogFollower:
    """Reads several log files from their start on, as they grow."""

    def __init__(self) -> None:
        self._offsets: dict[Path, int] = {}
        self._last: Path | None = None

    def read(self, paths: Iterable[Path]) -> Iterator[str]:
        """Yield what has been added to each file since the last call, below the file's name where the file changes."""
        for path in paths:
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                added = file.read()
            self._offsets[path] = self._offsets.get(path, 0) + len(added)
            if added:
                heading = f"==> {path} <==\n" if path != self._last else ""
                self._last = path
                yield heading + added.decode(errors="replace")
