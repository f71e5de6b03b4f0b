"""A listener for mpiboot's own processes that limits what strangers on the network can make it hold.

It serves a connection only after a TLS handshake with the job's certificate. Until then the connection is pending: it has
a deadline, and the number of pending connections is limited. Beyond the limit, the oldest one of the address that has
most of them is closed. So a stranger crowds out only their own connections, however many they open and hold.

Boot and agents import this module. It imports `protocol.channel`.
"""

import asyncio
import contextlib
import errno
import os
import resource
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from mpiboot.protocol.channel import Connection, accepted

BACKLOG = 1024
# How many connections may be pending beyond those that the job's own processes may open at once.
STRANGERS_MAX = 128
# How many descriptors this process may need besides those of its listener's connections.
DESCRIPTORS_SPARE = 384
# The pause after an error of accept(2), such as too many open files.
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
        Called with each authenticated `Connection`, which the listener closes when the call returns.
    n_peers : int
        How many of the job's processes may connect at once.
    ports : sequence of int, default (0,)
        The ports to try, in this order; 0: the kernel chooses one.

    Attributes
    ----------
    port : int
        The port.

    Raises
    ------
    OSError
        None of the ports is free.
    """

    def __init__(
        self,
        host: str,
        context: ssl.SSLContext,
        serve: Callable[[Connection], Awaitable[None]],
        n_peers: int,
        ports: Sequence[int] = (0,),
    ) -> None:
        self._context = context
        self._serve = serve
        # A peer may have two connections: it can dial again before this side has noticed the loss of the first.
        limit = allow_descriptors(2 * n_peers + STRANGERS_MAX + DESCRIPTORS_SPARE)
        self._pending_max = max(
            STRANGERS_MAX // 2, min(n_peers + STRANGERS_MAX, limit - DESCRIPTORS_SPARE - n_peers)
        )
        # The tasks of pending connections, the oldest first, with the address of the other side.
        self._pending: dict[asyncio.Task[None], str] = {}
        self._served: set[asyncio.Task[None]] = set()
        self._socket = listening_socket(host, ports)
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
                await asyncio.sleep(0)  # let other tasks run even if connections keep coming
        finally:
            self.close()
            tasks = {*self._pending, *self._served}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # the event loop closes the connections

    def close(self) -> None:
        """Close the listening socket. Call it only if `run` was not started; `run` closes the socket itself."""
        self._socket.close()

    async def _readable(self) -> None:
        # Not sock_accept: it loses a connection if it is cancelled.
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


def listening_socket(host: str, ports: Sequence[int]) -> socket.socket:
    """Return a socket that listens on the first free one of `ports`; raise OSError if there is none."""
    for port in ports:
        try:
            return socket.create_server((host, port), backlog=BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(
        f"no port from {ports[0]} to {ports[-1]} is free here (--worker-port): name a wider range that is open "
        "between the nodes, or wait until your other jobs there have ended",
    )


def allow_descriptors(count: int) -> int:
    """Raise this process's soft limit of open files to `count`, as far as the hard limit allows; return the limit."""
    limit = os.sysconf("SC_OPEN_MAX")
    if limit == -1:
        return sys.maxsize
    if limit < count:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = max(limit, count if hard == resource.RLIM_INFINITY else min(count, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def oldest_of_most(hosts: Sequence[str]) -> int:
    """Return the position at which the most frequent host occurs first."""
    most, _ = Counter(hosts).most_common(1)[0]
    return hosts.index(most)
