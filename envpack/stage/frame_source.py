"""Where the frames of an archive come from: an open file, or a stream. Only the stager and the extractor import this."""

from __future__ import annotations

import os
import queue
import threading
from typing import TYPE_CHECKING, Protocol

from envpack.archive.index import remove_and_pack_again
from envpack.common.places import host_name
from envpack.errors import CorruptArchiveError, StageFailedError

if TYPE_CHECKING:
    from envpack.archive.index import Index

_AHEAD = 4


class FrameSource(Protocol):
    """What threads that write frames ask for the next one; several ask at once."""

    def next(self, buffer: memoryview) -> tuple[int, bytearray | memoryview] | None:
        """Return a frame's number and its compressed bytes, which may lie in `buffer`; None after the last frame."""

    def stop(self) -> None:
        """Make `next` return None from now on."""


class FrameFile:
    """Frames of an open archive, read by the thread or process that writes them."""

    def __init__(self, fd: int, index: Index) -> None:
        self._fd = fd
        self._index = index
        self._starts = index.frame_starts()
        self._next = 0
        self._lock = threading.Lock()

    def next(self, buffer: memoryview) -> tuple[int, memoryview] | None:
        """Read the next frame, as `FrameSource.next`."""
        with self._lock:
            frame = self._next
            self._next += 1
        if frame >= len(self._index.frame_sizes):
            return None
        return frame, self.read(frame, buffer)

    def read(self, frame: int, buffer: memoryview) -> memoryview:
        """Read one frame into `buffer`.

        Raises
        ------
        CorruptArchiveError
            The file ends before the frame does.
        StageFailedError
            The file cannot be read.
        """
        # A slow file system then fetches the next frames while this one is decoded and written.
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
                        f"{self._index.path} was cut short while {host_name()} read it, in frame {frame}",
                        remove_and_pack_again(self._index),
                    )
                done += more
        except OSError as exc:
            raise StageFailedError(
                f"cannot read {self._index.path} on {host_name()}: {exc.strerror}", "Submit the job again"
            ) from exc
        return data

    def stop(self) -> None:
        """Make `next` return None from now on."""
        self._next = 1 << 62


class FrameQueue:
    """Frames of a stream. A few are kept until a thread asks for them; then `put` blocks."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._queue: queue.Queue[tuple[int, bytearray] | None] = queue.Queue(jobs + 2)
        self._stopped = False

    def put(self, frame: int, data: bytearray) -> None:
        """Hand a frame to the threads; block while they are behind."""
        while not self._stopped:
            try:
                self._queue.put((frame, data), timeout=0.1)
                return
            except queue.Full:
                continue

    def end(self) -> None:
        """Tell every thread that no frame follows."""
        for _ in range(self._jobs):
            while not self._stopped:
                try:
                    self._queue.put(None, timeout=0.1)
                    break
                except queue.Full:
                    continue

    def next(self, buffer: memoryview) -> tuple[int, bytearray] | None:
        """Wait for the next frame, as `FrameSource.next`."""
        while not self._stopped:
            try:
                return self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
        return None

    def stop(self) -> None:
        """Make `next` return None, and `put` return at once, from now on."""
        self._stopped = True
