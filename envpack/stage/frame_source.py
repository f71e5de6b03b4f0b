"""Where a stager's frames come from: a file, or a stream."""

from __future__ import annotations

import os
import queue
import threading
from typing import TYPE_CHECKING, Protocol

from envpack.errors import CorruptArchiveError, StageFailedError

if TYPE_CHECKING:
    from envpack.archive.index import Index

_AHEAD = 4


class FrameSource(Protocol):
    """Where frames come from; called by several threads at once."""

    def next(self, buffer: memoryview) -> tuple[int, bytearray | memoryview] | None:
        """Return a frame's number and its compressed bytes, perhaps in `buffer`; None after the last one."""

    def stop(self) -> None:
        """Make `next` return None from now on."""


class FrameFile:
    """Frames of an open archive: read by the threads, or processes, that need them."""

    def __init__(self, fd: int, index: Index) -> None:
        self._fd = fd
        self._index = index
        self._starts = index.frame_starts()
        self._next = 0
        self._lock = threading.Lock()

    def next(self, buffer: memoryview) -> tuple[int, memoryview] | None:
        with self._lock:
            frame = self._next
            self._next += 1
        if frame >= len(self._index.frame_sizes):
            return None
        return frame, self.read(frame, buffer)

    def read(self, frame: int, buffer: memoryview) -> memoryview:
        """Return one frame, in `buffer`."""
        # A slow file system fetches what comes next while this one is decoded and written.
        ahead = min(frame + _AHEAD, len(self._index.frame_sizes))
        os.posix_fadvise(
            self._fd, self._starts[frame], self._starts[ahead] - self._starts[frame], os.POSIX_FADV_WILLNEED
        )
        size = self._index.frame_sizes[frame]
        data = buffer[:size]
        done = 0
        try:
            while done < size:
                more = os.preadv(self._fd, [data[done:]], self._starts[frame] + done)
                if not more:
                    raise CorruptArchiveError(
                        f"{self._index.path} was cut short while it was read, in frame {frame}"
                    )
                done += more
        except OSError as exc:
            raise StageFailedError(f"cannot read {self._index.path}: {exc.strerror}") from exc
        return data

    def stop(self) -> None:
        self._next = 1 << 62


class FrameQueue:
    """Frames that arrive: a few wait, then the feeder does."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._queue: queue.Queue[tuple[int, bytearray] | None] = queue.Queue(jobs + 2)
        self._stopped = False

    def put(self, frame: int, data: bytearray) -> None:
        while not self._stopped:
            try:
                self._queue.put((frame, data), timeout=0.1)
                return
            except queue.Full:
                continue

    def end(self) -> None:
        for _ in range(self._jobs):
            while not self._stopped:
                try:
                    self._queue.put(None, timeout=0.1)
                    break
                except queue.Full:
                    continue

    def next(self, buffer: memoryview) -> tuple[int, bytearray] | None:
        while not self._stopped:
            try:
                return self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
        return None

    def stop(self) -> None:
        self._stopped = True
