"""Shows log files of any size: from where their end begins, and as they grow."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# How much of a file is read at a time.
BLOCK_BYTES = 1024**2


def start_of_end(path: Path, *, size_bytes: int, lines: int | None = None) -> int:
    """Return where the end of a log file begins, so that it can be shown without reading what is before it.

    Parameters
    ----------
    path : Path
        The log file.
    size_bytes : int
        How long the end is at most, unless its last line is longer; it begins with a whole line.
    lines : int, optional
        How many lines it has at most; None: any number.

    Returns
    -------
    int
        The offset in bytes; 0 if the file is missing or not readable.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        size = path.stat().st_size
        if lines == 0:
            return size
        least, end, wanted = max(0, size - size_bytes), size, lines or size_bytes
        first = least
        while end > least:
            start = max(least, end - BLOCK_BYTES)
            file.seek(start)
            block = file.read(end - start)
            # A line break at the file's end ends the last line, and begins none.
            position = len(block) - (1 if end == size and block.endswith(b"\n") else 0)
            while (position := block.rfind(b"\n", 0, position)) >= 0:
                first, wanted = start + position + 1, wanted - 1
                if wanted == 0:
                    return first
            end = start
        return least if least == 0 else first
    return 0


class LogFollower:
    """Reads several log files as they grow.

    Parameters
    ----------
    start : callable, optional
        Returns the offset from which a file is read, in bytes. Default: its beginning.
    """

    def __init__(self, start: Callable[[Path], int] = lambda path: 0) -> None:
        self._start = start
        self._offsets: dict[Path, int] = {}
        self._decoders: dict[Path, codecs.IncrementalDecoder] = {}
        self._last: Path | None = None

    def read(self, paths: Iterable[Path]) -> Iterator[str]:
        """Yield what has been added to each file since the last call, below the file's name where the file changes."""
        for path in paths:
            for added in self._read_file(path):
                heading = f"==> {path} <==\n" if path != self._last else ""
                self._last = path
                yield heading + added

    def _read_file(self, path: Path) -> Iterator[str]:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if path not in self._offsets:
                self._offsets[path] = self._start(path)
                self._decoders[path] = codecs.getincrementaldecoder("utf-8")("replace")
            file.seek(self._offsets[path])
            while added := file.read(BLOCK_BYTES):
                self._offsets[path] += len(added)
                if text := self._decoders[path].decode(added):
                    yield text
