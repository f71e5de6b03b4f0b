"""A listener that anyone on the network may connect to, and that bounds what they can make it hold.

Only who finishes the TLS handshake with the job's certificate is served. Until then a connection is pending: pending
connections have a deadline, and their number is limited. If too many are pending, the oldest one of the address with the
most is closed. So a stranger only crowds out themselves, however many connections they open and hold.

Boot and agents import this module.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from mpiboot.protocol.channel import Connection, accepted

BACKLOG = 1024
# Pending connections besides those that the job's own processes may open at once.
STRANGERS_MAX = 128
# Descriptors of this process besides those of its listener.
DESCRIPTORS_SPARE = 384
# After an error of accept(2), such as too many open files.
ACCEPT_PAUSE_S = 0.2


class Listener:
    """Serves the connections of the job's own processes.

    Parameters
    ----------
    host : str
        The IPv4 address to listen on; "" is all of the host's.
    context : SSLContext
        From `channel.server_context`.
    serve : callable
        Called with each `Connection`; closes nothing.
    n_peers : int
        How many of the job's processes may connect at once.

    Attributes
    ----------
    port : int
        The port, chosen by the kernel.
    """

    def __init__(
        self,
        host: str,
        context: ssl.SSLContext,
        serve: Callable[[Connection], Awaitable[None]],
        n_peers: int,
    ) -> None:
        self._context = context
        self._serve = serve
        # Each peer may have a connection, and another one that it has dialled before this side notices the loss of it.
        limit = allow_descriptors(2 * n_peers + STRANGERS_MAX + DESCRIPTORS_SPARE)
        self._pending_max = max(
            STRANGERS_MAX // 2, min(n_peers + STRANGERS_MAX, limit - DESCRIPTORS_SPARE - n_peers)
        )
        # In the order in which they came, with the address of the other side.
        self._pending: dict[asyncio.Task[None], str] = {}
        self._served: set[asyncio.Task[None]] = set()
        self._socket = socket.create_server((host, 0), backlog=BACKLOG)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]

    async def run(self) -> None:
        """Accept connections until cancelled; then close the listener and all connections."""
        try:
            while True:
                try:
                    connection, (host, _) = self._socket.accept()
                except BlockingIOError:
                    await self._readable()
                    continue
                except OSError:
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                self._make_room()
                task = asyncio.create_task(self._handle(connection))
                self._pending[task] = host
                task.add_done_callback(self._forget)
                await asyncio.sleep(0)  # others have their turn even if connections never stop to come
        finally:
            self.close()
            tasks = {*self._pending, *self._served}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # in which the connections are closed

    def close(self) -> None:
        """Close the listening socket; needed only if `run` was not begun."""
        self._socket.close()

    async def _readable(self) -> None:
        # Not sock_accept, which loses a connection if it is cancelled.
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._socket, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._socket)

    def _make_room(self) -> None:
        if len(self._pending) >= self._pending_max:
            victim = list(self._pending)[oldest_of_most(list(self._pending.values()))]
            del self._pending[victim]
            victim.cancel()

    async def _handle(self, connection: socket.socket) -> None:
        task = asyncio.current_task()
        assert task
        with contextlib.suppress(OSError):  # a stranger, or a process that has ended
            channel = await accepted(connection, self._context)
            self._pending.pop(task, None)
            self._served.add(task)
            try:
                await self._serve(channel)
                await channel.end()
            finally:
                channel.abort()

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._pending.pop(task, None)
        self._served.discard(task)


def allow_descriptors(count: int) -> int:
    """Raise this process's soft limit of open files to `count`, as far as the hard limit allows; return the limit."""
    limit = os.sysconf("SC_OPEN_MAX")
    if limit == -1:
        return sys.maxsize
    if limit < count:
        import resource  # one more file at the start of every agent, which only those of large jobs need

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = max(limit, count if hard == resource.RLIM_INFINITY else min(count, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def oldest_of_most(hosts: Sequence[str]) -> int:
    """Return the position of the first item that is the most frequent one."""
    most, _ = Counter(hosts).most_common(1)[0]
    return hosts.index(most)
