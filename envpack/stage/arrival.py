"""An archive that is still arriving: a growing file that another process on the node writes, and that the stager reads.

The index comes first, so that frames can be staged as they arrive:

    length and sha256 of the index | the index | frame 0 | frame 1 | …

The writer holds one end of a pipe open while it writes. When this end is closed, the writer has finished, has given up,
or was killed.

The stager imports this module, and so does a writer such as mpiboot's agent. It imports `envpack.common` and the errors.
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
# The writer has shorter deadlines of its own. This one applies if the writer's process was suspended.
NOTHING_NEW_S = 1800.0
# How long each of the stager's threads or processes waits until it looks at the file's size again, in milliseconds: first
# 5, then 10, then 20, then 40 each time. A longer pause costs little, because several frames may arrive in it.
_LOOK_AGAIN_MS = (5, 10, 20, 40)


def head(index: bytes | bytearray) -> bytes:
    """Return the beginning of the file, which precedes the index: its length and its sha256."""
    return HEAD.pack(len(index), hashlib.sha256(index).digest())


def index_size(start: bytes | bytearray | memoryview) -> int:
    """Return the size of the index in bytes, as the beginning of the file gives it.

    Raises
    ------
    ValueError
        The size exceeds INDEX_MAX_BYTES.
    """
    size = int(HEAD.unpack_from(start)[0])
    if size > INDEX_MAX_BYTES:
        raise ValueError(f"an index of {size} bytes")
    return size


def is_intact(start: bytes | memoryview) -> bool:
    """Return whether the index at the beginning of the file matches its checksum."""
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
            The writer has ended before that, or the bytes have not arrived within NOTHING_NEW_S.
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
