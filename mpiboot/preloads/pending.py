"""Limits what strangers can make a rank's servers hold: connections, seconds, bytes, lines of the log.

A connection is *pending* until it has authenticated itself: a Dask connection by its TLS handshake, an HTTP connection by
a request that the guard passes. Only pending connections are limited and closed here.

`preloads.guard` imports this module. It imports tornado and `distributed_internals`.
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
# A scheduler has two servers, so pending connections use at most a quarter of its descriptors.
DESCRIPTORS_PER_PENDING = 8
PENDING_S = 10.0
GRACE_S = 2.0
BLAME_S = 10.0
BLAMED_GRACE_S = 0.1
TICK_S = 0.1
ACCEPTED_PER_TURN = 16
BACKLOG = 1024
LOGGED_PER_MINUTE = 10


def max_pending() -> int:
    """Return how many connections may be pending per server; this leaves most descriptors to authenticated ones."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MAX_PENDING, max(MIN_PENDING, soft // DESCRIPTORS_PER_PENDING))


class PendingConnections:
    """The pending connections of one server.

    A connection that has been pending for `PENDING_S` is closed. If `limit` connections are pending, new ones wait in the
    kernel's queue, so that none is lost when many workers connect at once. But if some are older than `GRACE_S`, and few
    connections authenticate themselves, a stranger must be holding them. Then the address with most old connections is
    blamed: its oldest connections are closed to make room, and for `BLAME_S` any of its connections may be closed after
    `BLAMED_GRACE_S`. A connection that has sent nothing has no TLS or HTTP object, and is closed before those that have.

    Time is counted in ticks of the event loop, about `TICK_S` each. A loop that is busy for seconds cannot serve
    handshakes meanwhile, and counts this time as one tick.

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
        # Remote host and tick of acceptance of each connection, the oldest first. When the first byte arrives, a stream
        # takes the socket's place.
        self.pending: dict[socket.socket | IOStream, tuple[str, int]] = {}
        self.beginning: tuple[str, int] | None = None
        self.ticks = 0
        self.blamed: dict[str, int] = {}  # blamed remote hosts, with the tick of the last blame
        self.admitted = [0, 0]  # how many connections were admitted in the last tick, and in this one
        self.ticking = False
        self.paused = False
        self.loop = IOLoop.current()
        self.handle_stream = server.handle_stream
        server.handle_stream = self._handle_stream
        self.sockets = accept_connections(server, self._accept)
        for listening in self.sockets:
            listening.listen(BACKLOG)

    def admit(self, stream: IOStream) -> None:
        """Note that a connection has authenticated itself, and is no longer pending."""
        if self.pending.pop(stream, None):
            self.admitted[1] += 1
            if self.paused:
                self._resume()

    def _accept(self, listening: socket.socket, events: int) -> None:
        # Accept few connections per turn of the loop, so that their handshakes can keep pace.
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
                # No descriptor or memory is left. The socket stays readable: without a pause, the loop would only spin.
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
        """Close strangers' connections if more than `limit` are pending; return whether that is enough."""
        self._forget_closed()
        if len(self.pending) <= self.limit:
            return True
        self._close_strangers()
        return len(self.pending) <= self.limit

    def _close_strangers(self) -> None:
        """Close some connections of blamed addresses; if there are none and few authenticate, close some old ones."""
        chosen = [
            one
            for one, (host, _) in self.pending.items()
            if host in self.blamed and self._age_s(one) >= BLAMED_GRACE_S
        ]
        if not chosen and sum(self.admitted) < self.limit // 4:
            chosen = [one for one in self.pending if self._age_s(one) >= GRACE_S]
        self._close_oldest(chosen)

    def _close_oldest(self, candidates: list[socket.socket | IOStream]) -> None:
        """Blame the address with most candidates, and close its oldest ones, those that have sent nothing first."""
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
            if listening.fileno() != -1:  # -1: the server has been stopped
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
        """Return whether a record goes into the log. The first one of a minute names the number left out before it."""
        if not is_handshake_failure(record):
            return True
        if time.monotonic() - self.since >= 60.0:
            if self.seen > LOGGED_PER_MINUTE:
                record.msg = f"{record.msg} ({self.seen - LOGGED_PER_MINUTE} more failed before)"
            self.since, self.seen = time.monotonic(), 0
        self.seen += 1
        return self.seen <= LOGGED_PER_MINUTE
