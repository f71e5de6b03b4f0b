"""Bounds on what a stranger can make a server of a rank hold: connections, seconds, bytes, lines of the log.

A connection is *pending* from its acceptance until it has authenticated itself: a connection of Dask's by its TLS
handshake, an HTTP connection by a request that the guard passes. Only pending connections are bounded; what has
authenticated itself is never closed here. `preloads.guard` imports this module; it imports tornado.
"""

from __future__ import annotations

import collections
import functools
import logging
import resource
import socket
import time
from typing import Any

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.tcpserver import TCPServer

from mpiboot.distributed_internals import accept_connections, is_handshake_failure, serve_connection

logger = logging.getLogger(__name__)

MAX_PENDING = 512
MIN_PENDING = 32
DESCRIPTORS_PER_PENDING = 8  # a scheduler has two servers: a quarter of its descriptors
PENDING_S = 10.0
GRACE_S = 2.0
BLAME_S = 10.0
BLAMED_GRACE_S = 0.1
TICK_S = 0.1
ACCEPTED_PER_TURN = 16
BACKLOG = 1024
LOGGED_PER_MINUTE = 10


def max_pending() -> int:
    """Return how many connections may be pending per server: few enough to leave most descriptors to others."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MAX_PENDING, max(MIN_PENDING, soft // DESCRIPTORS_PER_PENDING))


class PendingConnections:
    """The pending connections of one server.

    A connection that has been pending for `PENDING_S` is closed. If `limit` are pending, further ones wait in the
    kernel's queue, so that a crowd of workers that connect at once loses none. But once some are older than `GRACE_S`,
    and few authenticate themselves, a stranger holds them. New ones then take the places of the oldest ones of the
    address that has most, and for `BLAME_S` that address's connections have a grace of `BLAMED_GRACE_S`. A connection
    that has sent nothing costs no TLS or HTTP object, and is closed before those that have.

    Time is counted in ticks of the event loop. A loop that was busy for seconds has had no time for handshakes; for it
    that is one tick.

    Parameters
    ----------
    server : tornado.tcpserver.TCPServer
        A server that has just started to listen, and has accepted nothing yet.
    limit : int
        How many connections may be pending.
    """

    def __init__(self, server: TCPServer, limit: int) -> None:
        self.server = server
        self.limit = limit
        # Remote host, and tick of the acceptance; the oldest first. A socket becomes a stream with its first byte.
        self.pending: dict[socket.socket | IOStream, tuple[str, int]] = {}
        self.beginning: tuple[str, int] | None = None
        self.ticks = 0
        self.blamed: dict[str, int] = {}  # remote hosts, and the tick of the last time
        self.admitted = [0, 0]  # in the last tick and in this one
        self.ticking = False
        self.paused = False
        self.loop = IOLoop.current()
        self.handle_stream = server.handle_stream
        server.handle_stream = self._handle_stream
        self.sockets = accept_connections(server, self._accept)
        for listening in self.sockets:
            listening.listen(BACKLOG)

    def admit(self, stream: IOStream) -> None:
        """Take a connection off the list: it has authenticated itself."""
        if self.pending.pop(stream, None):
            self.admitted[1] += 1
            if self.paused:
                self._resume()

    def _accept(self, listening: socket.socket, events: int) -> None:
        # Few per turn of the loop, so that the handshakes of those accepted keep pace.
        for _ in range(ACCEPTED_PER_TURN):
            if len(self.pending) > self.limit and not self._make_room():
                return self._pause()
            try:
                connection, address = listening.accept()
            except BlockingIOError:
                return None
            except ConnectionAbortedError:
                continue
            except OSError as error:
                # No descriptor or memory is left. The socket stays readable: to go on would only use up the processor.
                logger.debug("cannot accept a connection: %s", error)
                self._close_strangers()
                return self._pause()
            connection.setblocking(False)
            self.pending[connection] = address[0], self.ticks
            self.loop.add_handler(connection, functools.partial(self._begin, address), IOLoop.READ)
            self._keep_ticking()
        return None

    def _begin(self, address: Any, connection: socket.socket, events: int) -> None:
        """Serve a connection that has sent its first byte."""
        self.loop.remove_handler(connection)
        self.beginning = self.pending.pop(connection)
        try:
            if connection.recv(1, socket.MSG_PEEK):
                serve_connection(self.server, connection, address)
                return
        except OSError as error:
            logger.debug("lost a connection from %s: %s", address, error)
        connection.close()

    def _handle_stream(self, stream: IOStream, address: Any) -> Any:
        assert self.beginning
        self.pending[stream] = self.beginning
        return self.handle_stream(stream, address)

    def _make_room(self) -> bool:
        """Return whether no more than `limit` are pending; close old ones if necessary and right."""
        self._forget_closed()
        if len(self.pending) <= self.limit:
            return True
        self._close_strangers()
        return len(self.pending) <= self.limit

    def _close_strangers(self) -> None:
        """Close some connections of a blamed address, if it has any, else some that are old."""
        chosen = [
            one
            for one, (host, _) in self.pending.items()
            if host in self.blamed and self._age_s(one) >= BLAMED_GRACE_S
        ]
        if not chosen and sum(self.admitted) < self.limit // 4:
            chosen = [one for one in self.pending if self._age_s(one) >= GRACE_S]
        self._close_oldest(chosen)

    def _close_oldest(self, candidates: list[socket.socket | IOStream]) -> None:
        """Close the oldest ones of the address that has most of the candidates, and blame it; silent ones go first."""
        hosts = collections.Counter(self.pending[one][0] for one in candidates)
        if not hosts:
            return
        host, number = hosts.most_common(1)[0]
        self.blamed[host] = self.ticks
        theirs = [one for one in candidates if self.pending[one][0] == host]
        silent = [one for one in theirs if isinstance(one, socket.socket)]
        if len(silent) >= number // 4:
            theirs = silent
        for one in theirs[: max(1, number // 16)]:
            self._close(one)

    def _age_s(self, one: socket.socket | IOStream) -> float:
        return (self.ticks - self.pending[one][1]) * TICK_S

    def _forget_closed(self) -> None:
        closed = [one for one in self.pending if isinstance(one, IOStream) and one.closed()]
        for one in closed:
            del self.pending[one]

    def _close(self, one: socket.socket | IOStream) -> None:
        del self.pending[one]
        if isinstance(one, socket.socket):
            self.loop.remove_handler(one)
        one.close()

    def _pause(self) -> None:
        self.paused = True
        self._listen_for(0)
        self._keep_ticking()

    def _resume(self) -> None:
        self.paused = False
        self._listen_for(IOLoop.READ)

    def _listen_for(self, events: int) -> None:
        for listening in self.sockets:
            if listening.fileno() != -1:  # the server has not been stopped
                self.loop.update_handler(listening, events)

    def _keep_ticking(self) -> None:
        if not self.ticking and (self.pending or self.paused):
            self.ticking = True
            self.loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self.ticking = False
        self.ticks += 1
        self.admitted = [self.admitted[1], 0]
        self._forget_closed()
        for one in [one for one in self.pending if self._age_s(one) >= PENDING_S]:
            self._close(one)
        self.blamed = {
            host: tick for host, tick in self.blamed.items() if (self.ticks - tick) * TICK_S < BLAME_S
        }
        if self.paused:
            self._resume()
        self._keep_ticking()


class FewHandshakeFailures(logging.Filter):
    """Passes the first `LOGGED_PER_MINUTE` failed TLS handshakes of each minute to the log, and counts the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.since = time.monotonic()
        self.seen = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record goes into the log; a record that does names the number of those that did not."""
        if not is_handshake_failure(record):
            return True
        if time.monotonic() - self.since >= 60.0:
            if self.seen > LOGGED_PER_MINUTE:
                record.msg = f"{record.msg} ({self.seen - LOGGED_PER_MINUTE} more failed before)"
            self.since, self.seen = time.monotonic(), 0
        self.seen += 1
        return self.seen <= LOGGED_PER_MINUTE
