"""Reads the frames of an archive from an open file, which is complete or still arriving.

Only the stager and the extractor import this module. It imports `envpack.archive` and `envpack.common`.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from envpack.archive.index import remove_and_pack_again
from envpack.common.places import host_name
from envpack.errors import CorruptArchiveError, StageFailedError

if TYPE_CHECKING:
    from envpack.archive.index import Index
    from envpack.stage.arrival import Arrival

_AHEAD = 4


class FrameFile:
    """Frames of an open archive, read by the thread or process that writes them.

    Parameters
    ----------
    fd : int
        The open file.
    index : Index
        The archive's index.
    start : int, bytes, default 0
        Offset of the first frame in the file.
    arrival : Arrival, optional
        Given if the file is still arriving: wait for each frame.
    """

    def __init__(self, fd: int, index: Index, start: int = 0, arrival: Arrival | None = None) -> None:
        self._fd = fd
        self._index = index
        self._starts = [start + at for at in index.frame_starts()]
        self._arrival = arrival
        self._next = 0
        self._lock = threading.Lock()

    def next(self, buffer: memoryview) -> tuple[int, memoryview] | None:
        """Return the next frame's number and its bytes, which lie in `buffer`; None after the last. Thread-safe."""
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
            The file cannot be read, or does not arrive.
        """
        if self._arrival:
            self._arrival.wait(self._starts[frame + 1])
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
