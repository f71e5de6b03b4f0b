"""Passes the output of the node's ranks on to boot, which writes it to the job's log.

The ranks print into a pipe, and must never wait for the log. So the agent always reads the pipe, and keeps what boot
cannot take yet. Beyond KEPT_BYTES_MAX it drops the oldest output, and a line in the log says how much.

Only the agent imports this module. It imports `protocol.channel` and its messages.
"""

import asyncio
import contextlib
import os

from mpiboot.agent.threads import in_time
from mpiboot.protocol.channel import Connection
from mpiboot.protocol.channel_messages import Output

PIECE_BYTES = 1 << 16
# How many pieces are read before the event loop turns to other tasks.
PIECES_AT_ONCE = 16
# The most output that may be on its way to boot.
UNSENT_BYTES_MAX = 1 << 20
# The most output that is kept until it can be sent.
KEPT_BYTES_MAX = 16 << 20
TRY_AGAIN_S = 0.05


class RanksOutput:
    """The pipe into which all ranks of this node print.

    Attributes
    ----------
    writer, reader : int
        The descriptors of the pipe: to print to, and to read from.
    """

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self._connection: Connection | None = None
        self._kept = bytearray()
        self._dropped_bytes = 0
        self._next_try: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.reader, self.forward)

    def connect(self, connection: Connection | None) -> None:
        """Send boot the kept output, and all that follows, over this connection; with None, keep the output."""
        self._connection = connection
        self._pass_on()

    def forward(self) -> None:
        """Read the pipe, and pass on what the ranks have printed."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(PIECES_AT_ONCE):
                self.say(os.read(self.reader, PIECE_BYTES))

    def say(self, output: bytes) -> None:
        """Pass on some output, behind the output that is kept."""
        self._kept += output
        if (surplus := len(self._kept) - KEPT_BYTES_MAX) > 0:
            del self._kept[:surplus]
            self._dropped_bytes += surplus
        self._pass_on()

    async def finish(self, timeout_s: float) -> None:
        """Pass on all that has been printed, if boot accepts it within `timeout_s` seconds."""
        give_up_at = self._loop.time() + timeout_s
        self.forward()
        with contextlib.suppress(OSError):  # and TimeoutError
            while self._kept and self._connection:
                await in_time(self._connection.drain(), give_up_at - self._loop.time())
                self._pass_on()

    def close(self) -> bytes:
        """Read the pipe a last time and close it; return the output that could not be passed on."""
        self.forward()
        self._connection = None
        self._loop.remove_reader(self.reader)
        os.close(self.reader)
        os.close(self.writer)
        return self._dropped() + self._kept

    def _pass_on(self) -> None:
        """Send boot kept output until UNSENT_BYTES_MAX is on its way; try again after TRY_AGAIN_S with the rest."""
        if self._next_try:
            self._next_try.cancel()
            self._next_try = None
        connection = self._connection
        while connection and self._kept and connection.unsent_bytes < UNSENT_BYTES_MAX:
            connection.post(Output(), self._dropped() + self._kept[:PIECE_BYTES])
            del self._kept[:PIECE_BYTES]
        if connection and self._kept:
            self._next_try = self._loop.call_later(TRY_AGAIN_S, self._pass_on)

    def _dropped(self) -> bytes:
        """Return the line that says how many bytes were dropped before the kept output; b"" if none were."""
        if not self._dropped_bytes:
            return b""
        words = (
            f"\nmpiboot: {self._dropped_bytes} bytes of output are lost: boot could not accept them in time\n"
        )
        self._dropped_bytes = 0
        return words.encode()
