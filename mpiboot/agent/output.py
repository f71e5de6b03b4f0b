"""What the node's ranks print: read from a pipe, and passed on to boot, which writes it to the job's log.

Ranks must never wait for a log. So the pipe is always read, and what boot cannot take is dropped, the oldest first.
Only the agent imports this module.
"""

import asyncio
import collections
import contextlib
import os

from mpiboot.protocol.channel import Connection, Output

PIECE_BYTES = 1 << 16
KEPT_PIECES_MAX = 16


class RanksOutput:
    """The pipe into which all ranks of this node print.

    Attributes
    ----------
    writer, reader : int
        The descriptors of the pipe: to print to, and to read from.
    connection : Connection or None
        The connection to boot; without one, the last output is kept.
    """

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self._kept: collections.deque[bytes] = collections.deque(maxlen=KEPT_PIECES_MAX)
        self.connection: Connection | None = None
        asyncio.get_running_loop().add_reader(self.reader, self.forward)

    def forward(self) -> None:
        """Pass on what has been printed."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(KEPT_PIECES_MAX):
                self.say(os.read(self.reader, PIECE_BYTES))

    def say(self, output: bytes) -> None:
        """Pass on some output, and what was kept before."""
        self._kept.append(output)
        while self._kept and self.connection and self.connection.unsent_bytes < KEPT_PIECES_MAX * PIECE_BYTES:
            self.connection.post(Output(), self._kept.popleft())

    def close(self) -> bytes:
        """Stop reading; return what could not be passed on."""
        self.forward()
        asyncio.get_running_loop().remove_reader(self.reader)
        os.close(self.reader)
        os.close(self.writer)
        return b"".join(self._kept)
