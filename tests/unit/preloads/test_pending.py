"""What a stranger can make a server hold, with real sockets; the authentication is the line "please"."""

import asyncio
import contextlib
import logging
import os
import resource
import socket
import time

import pytest
from holder import hold
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.tcpserver import TCPServer

from mpiboot.preloads import pending
from mpiboot.preloads.pending import FewHandshakeFailures, PendingConnections

OWNER, STRANGER = "127.0.0.1", "127.0.0.2"


class Server(TCPServer):
    """Echoes lines; "please" admits a connection."""

    async def handle_stream(self, stream, address):
        self.streams.append(stream)
        try:
            while line := await stream.read_until(b"\n"):
                if line == b"please\n":
                    self.pending.admit(stream)
                await stream.write(line)
        except StreamClosedError:
            pass


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Let time pass ten times as fast as in a job."""
    for name in ("PENDING_S", "GRACE_S", "BLAMED_GRACE_S", "TICK_S", "BLAME_S"):
        monkeypatch.setattr(pending, name, getattr(pending, name) / 10)


def served(limit, work):
    """Run `work(server)` while a server with that limit listens; return its result."""

    async def run():
        server = Server()
        server.writers, server.streams = [], []
        server.add_sockets(bind_sockets(0, "127.0.0.1"))
        server.pending = PendingConnections(server, limit)
        server.port = server.pending.sockets[0].getsockname()[1]
        try:
            return await asyncio.wait_for(work(server), 60)
        finally:
            for writer in server.writers:
                writer.close()
            await until(lambda: all(stream.closed() for stream in server.streams))
            for connection in server.pending.pending:
                connection.close()
            server.stop()

    return asyncio.run(run())


async def call(server, host=OWNER, line=b"please\n"):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=(host, 0))
    server.writers.append(writer)
    if line:
        writer.write(line)
    return reader, writer


async def answer(connection, line=b"please\n"):
    reader, writer = connection
    writer.write(line)
    return await asyncio.wait_for(reader.readline(), 5)


def hosts(server):
    return [host for host, _ in server.pending.pending.values()]


async def until(done):
    while not done():
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def all_descriptors_in_use():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in taken:
            os.close(number)


@pytest.mark.parametrize("line", [b"", b"half a lin", b"rubbish\n"])
def test_a_stranger_s_connection_is_closed_after_a_while(line):
    async def work(server):
        owner = await call(server)
        assert await owner[0].readline() == b"please\n"
        since = time.monotonic()
        reader, _ = await call(server, STRANGER, line)
        await reader.read()
        held_s = time.monotonic() - since
        assert await answer(owner) == b"please\n"  # idle for longer, but admitted
        return held_s

    assert pending.PENDING_S - pending.TICK_S < served(10, work) < pending.PENDING_S + 1


def test_a_drip_does_not_prolong_it():
    async def work(server):
        dripping = hold("127.0.0.1", server.port, "drip", connections=3, seconds=8)
        return await dripping

    figures = served(10, work)
    assert (figures.opened, figures.closed) == (3, 3)
    assert figures.held_s[2] < pending.PENDING_S + 1


@pytest.mark.parametrize("owner_host", [OWNER, STRANGER])
@pytest.mark.parametrize("line", [b"", b"half a lin"])
def test_the_owner_gets_in_while_a_stranger_holds_all_places(owner_host, line, monkeypatch):
    monkeypatch.setattr(pending, "PENDING_S", 1000.0)

    async def work(server):
        before = await call(server, owner_host)
        assert await before[0].readline() == b"please\n"
        for _ in range(50):
            await call(server, STRANGER, line)
        since = time.monotonic()
        owners = [await call(server, owner_host) for _ in range(3)]
        for reader, _ in owners:
            assert await reader.readline() == b"please\n"
        took_s = time.monotonic() - since
        await until(lambda: len(server.pending.pending) <= 20)
        assert set(hosts(server)) == {STRANGER}
        assert list(server.pending.blamed) == [STRANGER]
        assert await answer(before) == b"please\n"
        return took_s

    assert served(20, work) < pending.GRACE_S + 1


def test_the_oldest_of_the_address_that_has_most_goes_first(monkeypatch):
    monkeypatch.setattr(pending, "PENDING_S", 1000.0)

    def ages_s(server):
        return [(server.pending.ticks - tick) * pending.TICK_S for _, tick in server.pending.pending.values()]

    async def work(server):
        held = [await call(server, host, b"x") for host in ["127.0.0.3"] + 8 * [STRANGER] + ["127.0.0.3"]]
        await until(lambda: len(server.pending.pending) == 10)
        # Its ticks are longer where the CPU is busy.
        await until(lambda: min(ages_s(server)) > pending.GRACE_S)
        owner = await call(server)
        assert await owner[0].readline() == b"please\n"
        await until(lambda: any(reader.at_eof() for reader, _ in held))
        closed = [reader.at_eof() for reader, _ in held]
        return closed

    assert served(10, work) == [False, True] + 8 * [False]


def test_a_crowd_of_workers_loses_none():
    async def work(server):
        crowd = await asyncio.gather(*(call(server) for _ in range(400)))
        answers = [await reader.readline() for reader, _ in crowd]
        assert not server.pending.blamed
        return answers

    assert served(10, work) == 400 * [b"please\n"]


def test_a_busy_loop_gives_those_who_wait_the_time_they_lost():
    async def work(server):
        connection = await call(server, line=b"")
        await until(lambda: server.pending.pending)
        time.sleep(2 * pending.PENDING_S)
        return await answer(connection)

    assert served(10, work) == b"please\n"


def test_without_descriptors_it_waits_for_some(monkeypatch):
    turns = []
    accept = PendingConnections._accept
    monkeypatch.setattr(PendingConnections, "_accept", lambda *args: turns.append(args) or accept(*args))

    async def work(server):
        admitted = await call(server)
        assert await admitted[0].readline() == b"please\n"
        client = socket.socket()
        client.setblocking(False)
        with all_descriptors_in_use():
            turns.clear()
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", server.port))
            await until(lambda: server.pending.paused)
            await asyncio.sleep(10 * pending.TICK_S)
            assert 2 <= len(turns) <= 20
            assert await answer(admitted) == b"please\n"
        client.send(b"please\n")
        reader, writer = await asyncio.open_connection(sock=client)
        server.writers.append(writer)
        return await asyncio.wait_for(reader.readline(), 5)

    assert served(10, work) == b"please\n"


def test_a_server_that_stops_while_it_is_full(monkeypatch):
    for name in ("PENDING_S", "GRACE_S"):
        monkeypatch.setattr(pending, name, 1000.0)

    async def work(server):
        for line in [b"please\n"] * 5 + [b""] * 20:
            await call(server, STRANGER, line)
        await until(lambda: server.pending.paused)
        server.stop()
        monkeypatch.setattr(pending, "PENDING_S", 0.1)
        await until(lambda: not server.pending.ticking)
        return server.pending.pending

    assert served(10, work) == {}


@pytest.mark.parametrize(("soft", "limit"), [(64, 32), (1024, 128), (4096, 512), (1_000_000, 512)])
def test_most_descriptors_are_left_to_others(soft, limit, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, soft))
    assert pending.max_pending() == limit


def test_a_flood_of_failed_handshakes_does_not_fill_the_log(monkeypatch, caplog):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    log, few = logging.getLogger("of test_pending"), FewHandshakeFailures()
    log.addFilter(few)
    try:
        for _ in range(1000):
            log.warning("Listener on %r: TLS handshake failed with remote %r: %s", 1, 2, 3)
        log.warning("another message")
        clock[0] += 61
        log.warning("Listener on %r: TLS handshake failed with remote %r: %s", 1, 2, 3)
    finally:
        log.removeFilter(few)
    failure = "Listener on 1: TLS handshake failed with remote 2: 3"
    assert [record.getMessage() for record in caplog.records] == [
        *[failure] * pending.LOGGED_PER_MINUTE,
        "another message",
        f"{failure} (990 more failed before)",
    ]
