"""An archive that is still arriving: a growing file, which another process of the node writes, and which stagers read.

The index comes first, so that frames can be staged as they arrive:

    length and sha256 of the index | the index | frame 0 | frame 1 | …

The writer holds the other end of a pipe for as long as it writes: when that is closed, the writer has finished, has given
up, or was killed. mpiboot's agent is a writer; the stager reads.
"""

from __future__ import annotations

import hashlib
import os
import select
import struct
import time

from envpack.common.places import host_name
from envpack.errors import StageFailedError

HEAD = struct.Struct("<Q32s")
INDEX_MAX_BYTES = 1 << 28
# The writer has deadlines of its own; this one is for a writer that was stopped.
NOTHING_NEW_S = 1800.0
# Every writer of the stager looks, and none loses much: frames that have come meanwhile need no further look.
_LOOK_AGAIN_MS = (5, 10, 20, 40)


def head(index: bytes | bytearray) -> bytes:
    """Return what the file begins with, before the index."""
    return HEAD.pack(len(index), hashlib.sha256(index).digest())


def index_size(start: bytes | bytearray | memoryview) -> int:
    """Return the size of the index, from the beginning of the file.

    Raises
    ------
    ValueError
        It claims too many bytes.
    """
    size = int(HEAD.unpack_from(start)[0])
    if size > INDEX_MAX_BYTES:
        raise ValueError(f"an index of {size} bytes")
    return size


def is_intact(start: bytes | memoryview) -> bool:
    """Tell whether the index at the beginning of the file has its checksum."""
    size, checksum = HEAD.unpack_from(start)
    return bool(hashlib.sha256(memoryview(start)[HEAD.size : HEAD.size + size]).digest() == checksum)


class Arrival:
    """The stager's side of an archive that is still arriving.

    Parameters
    ----------
    fd : int
        The growing file.
    pipe : int
        The reading end of the writer's pipe.
    """

    def __init__(self, fd: int, pipe: int) -> None:
        self.fd = fd
        self._pipe = pipe
        self._size = 0

    def wait(self, size: int) -> None:
        """Wait until the file has its first `size` bytes.

        Raises
        ------
        StageFailedError
            The writer has given up, or writes nothing any more.
        """
        if self._grown_to(size):
            return
        deadline = time.monotonic() + NOTHING_NEW_S
        end = select.poll()
        end.register(self._pipe, select.POLLHUP)
        for turn in range(1 << 62):
            gone = end.poll(_LOOK_AGAIN_MS[min(turn, 3)])
            if self._grown_to(size):
                return
            if gone or time.monotonic() > deadline:
                why = "nothing more came" if gone else f"nothing came for {NOTHING_NEW_S:.0f} s"
                raise StageFailedError(
                    f"{self._size} bytes of the archive have arrived on {host_name()}, then {why}",
                    "Submit the job again",
                )

    def _grown_to(self, size: int) -> bool:
        if self._size < size:
            self._size = os.fstat(self.fd).st_size
        return self._size >= size

    def read_index(self) -> bytes:
        """Wait for the index, and return it."""
        self.wait(HEAD.size)
        size = index_size(os.pread(self.fd, HEAD.size, 0))
        self.wait(HEAD.size + size)
        return os.pread(self.fd, size, HEAD.size)
