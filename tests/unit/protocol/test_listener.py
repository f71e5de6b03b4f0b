"""The listener that strangers may connect to: what they can make it hold, and that they keep nobody out."""

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from channelends import descriptors, listening, make_tls, run, sockets, until

from mpiboot.protocol import channel, listener
from mpiboot.protocol.channel import client_context, dial
from mpiboot.protocol.channel_messages import Heartbeat, Hello
from mpiboot.protocol.listener import oldest_of_most

HOLDER = Path(__file__).resolve().parents[2] / "support" / "holder.py"
HELLO = Hello("1", "n1", "h1", 7)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return make_tls(tmp_path_factory.mktemp("job"))


@contextlib.contextmanager
def stranger(port, connections, *modes):
    """A process that holds that many connections, and opens another one for each that is closed."""
    process = subprocess.Popen(
        [
            *(sys.executable, str(HOLDER), f"127.0.0.1:{port}", "--again", "--seconds", "120"),
            *("--connections", str(connections // len(modes)), *(f"--mode={mode}" for mode in modes)),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def echo(connection):
    while True:
        message, payload = await connection.receive()
        await connection.send(message, payload)


async def ask(port, context):
    connection = await dial("127.0.0.1", port, context)
    try:
        await connection.send(HELLO)
        return await connection.receive()
    finally:
        connection.abort()


async def ask_as_agents_do(port, context):
    """Ask again if the connection was crowded out."""
    while True:
        with contextlib.suppress(OSError):
            return await ask(port, context)
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("hosts", "position"),
    [
        (["a"], 0),
        (["a", "b", "b"], 1),
        (["a", "b", "c"], 0),
        (["b", "a", "b", "a", "a"], 1),
        (["a", *["b"] * 9, "a"], 1),
    ],
)
def test_the_oldest_connection_of_the_host_with_most_gives_way(hosts, position):
    assert oldest_of_most(hosts) == position


@pytest.mark.parametrize("modes", [["silent"], ["silent", "garbage", "half-hello", "hello", "drip-hello"]])
def test_a_stranger_with_thousands_of_connections_keeps_nobody_out(tls, modes):
    most = 0

    async def work():
        nonlocal most
        peers, context = 50, client_context(tls)
        async with listening(tls, echo, n_peers=peers) as listening_here:
            before = descriptors()
            bound = peers + listener.STRANGERS_MAX
            with stranger(listening_here.port, 2000, *modes):
                await until(lambda: descriptors() - before >= bound // 2, "flood of connections", 60.0)

                async def look():
                    nonlocal most
                    while True:
                        most = max(most, descriptors() - before)
                        await asyncio.sleep(0.02)

                looking = asyncio.create_task(look())
                for _ in range(3):
                    # On the stranger's host, where a peer is crowded out if its handshake takes too long.
                    asking = [ask_as_agents_do(listening_here.port, context) for _ in range(peers)]
                    answers = await asyncio.wait_for(asyncio.gather(*asking), 30.0)
                    assert answers == [(HELLO, b"")] * peers
                looking.cancel()
            # Pending ones, and both ends of those of the peers.
            assert most <= bound + 2 * peers + 10

    run(work(), 120.0)
    assert most


def test_if_too_many_wait_the_oldest_gives_way_to_a_peer(tls, monkeypatch):
    monkeypatch.setattr(listener, "STRANGERS_MAX", 9)

    async def work():
        async with listening(tls, echo) as listening_here:
            address = ("127.0.0.1", listening_here.port)
            strangers = [await asyncio.open_connection(*address) for _ in range(10)]
            await until(lambda: len(listening_here._pending) == 10, "ten pending connections")
            assert await ask(listening_here.port, client_context(tls)) == (HELLO, b"")
            assert await asyncio.wait_for(strangers[0][0].read(), 10.0) == b""
            assert not any(reader.at_eof() for reader, _ in strangers[1:])
            for _, writer in strangers:
                writer.transport.abort()
            await asyncio.sleep(0)

    run(work())


def test_a_handshake_has_a_deadline(tls, monkeypatch):
    monkeypatch.setattr(channel, "HANDSHAKE_TIMEOUT_S", 0.3)

    async def work():
        async with listening(tls, echo) as listening_here:
            reader, writer = await asyncio.open_connection("127.0.0.1", listening_here.port)
            writer.write(b"\x16\x03\x01")  # the beginning of a ClientHello
            assert await asyncio.wait_for(reader.read(), 10.0) == b""
            writer.transport.abort()
            await asyncio.sleep(0)

    run(work())


def test_a_served_connection_has_no_deadline_of_the_handshake(tls, monkeypatch):
    monkeypatch.setattr(channel, "HANDSHAKE_TIMEOUT_S", 0.3)

    async def work():
        async with listening(tls, echo) as listening_here:
            connection = await dial("127.0.0.1", listening_here.port, client_context(tls))
            await asyncio.sleep(0.6)
            await connection.send(HELLO)
            assert await connection.receive() == (HELLO, b"")
            await connection.end()

    run(work())


def test_another_authoritys_certificate_is_not_served(tls, tmp_path):
    served = []

    async def serve(connection):
        served.append(connection)

    async def work():
        async with listening(tls, serve) as listening_here:
            context = client_context(make_tls(tmp_path))
            context.verify_mode = 0  # the stranger does not mind who the listener is
            with pytest.raises(OSError):
                connection = await dial("127.0.0.1", listening_here.port, context)
                try:  # TLS 1.3: the dialling side is done before it is refused
                    await connection.receive(10.0)
                finally:
                    connection.abort()

    run(work())
    assert served == []


class Full:
    """A listening socket whose accept(2) fails for want of descriptors, until there are some."""

    def __init__(self, plain):
        self.plain, self.is_full, self.n_failures = plain, True, 0

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def accept(self):
        if self.is_full:
            self.n_failures += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.plain.accept()


def test_too_many_open_files_do_not_end_it(tls, monkeypatch):
    monkeypatch.setattr(listener, "ACCEPT_PAUSE_S", 0.01)

    async def work():
        context = client_context(tls)
        async with listening(tls, echo) as listening_here:
            plain = listening_here._socket
            full = listening_here._socket = Full(plain)
            opening = asyncio.create_task(dial("127.0.0.1", listening_here.port, context))
            await until(lambda: full.n_failures > 1, "failure of accept(2)")
            assert not opening.done()
            full.is_full = False
            connection = await asyncio.wait_for(opening, 10.0)
            connection.abort()
            assert await ask(listening_here.port, context) == (HELLO, b"")
            listening_here._socket = plain

    run(work())


@pytest.mark.parametrize("steps", range(12))
def test_its_end_leaves_nothing_however_far_a_connection_is(tls, steps):
    async def work():
        context = client_context(tls)
        async with listening(tls, echo) as listening_here:
            tasks = [asyncio.create_task(ask(listening_here.port, context)) for _ in range(3)]
            for _ in range(steps * steps):
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)

    run(work())


@pytest.mark.parametrize("steps", range(5))
def test_its_end_closes_a_connection_that_has_just_come(tls, steps):
    async def work():
        async with listening(tls, echo) as listening_here:
            plain = socket.create_connection(("127.0.0.1", listening_here.port))
            while not listening_here._pending:
                await asyncio.sleep(0)
            for _ in range(steps):
                await asyncio.sleep(0)
        plain.settimeout(10.0)
        with contextlib.suppress(ConnectionResetError):
            assert plain.recv(1) == b""
        plain.close()

    run(work())


@pytest.mark.parametrize(
    ("soft", "hard", "peers", "expected"),
    [
        (1024, 1024, 1, (1024, 129)),
        (1024, 4096, 256, (1024, 384)),
        (1024, 4096, 1000, (2512, 1128)),
        (1024, 2000, 1000, (2000, 616)),
        (1024, 1024, 1000, (1024, 64)),
    ],
)
def test_the_limit_of_open_files_is_raised_or_else_fewer_are_pending(tls, soft, hard, peers, expected):
    program = """
import resource, sys
soft, hard, peers = map(int, sys.argv[1:4])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from mpiboot.protocol.listener import Listener
listener = Listener("127.0.0.1", None, None, peers)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], listener._pending_max)
listener.close()
"""
    argv = [sys.executable, "-c", program, *map(str, (soft, hard, peers))]
    assert tuple(map(int, subprocess.check_output(argv).split())) == expected


def test_the_first_free_port_is_taken():
    with listener.listening_socket("127.0.0.1", (0,)) as first:
        port = first.getsockname()[1]
        with listener.listening_socket("127.0.0.1", (port, 0)) as second:
            assert second.getsockname()[1] not in (0, port)
        with pytest.raises(OSError, match=rf"no port from {port} to {port} is free here"):
            listener.listening_socket("127.0.0.1", (port,))


def test_who_is_crowded_out_at_any_step_leaves_nothing(tls, monkeypatch):
    """Peers are crowded out by peers, while they shake hands."""
    monkeypatch.setattr(listener, "STRANGERS_MAX", 2)

    async def work():
        context = client_context(tls)
        async with listening(tls, echo, n_peers=1) as listening_here:
            before = sockets()
            results = await asyncio.gather(
                *(ask(listening_here.port, context) for _ in range(60)), return_exceptions=True
            )
            assert {type(one) for one in results} >= {tuple}
            assert all(one == (HELLO, b"") or isinstance(one, OSError) for one in results)
            await until(lambda: not sockets() - before, "end of all connections")
            assert await ask(listening_here.port, context) == (HELLO, b"")

    run(work())


def test_others_are_served_while_connections_never_stop_to_come(tls):
    async def work():
        context = client_context(tls)
        async with listening(tls, echo) as listening_here:
            connection = await dial("127.0.0.1", listening_here.port, context)
            plain = listening_here._socket
            waiting = socket.create_connection(("127.0.0.1", listening_here.port))
            listening_here._socket = Endless(plain)
            waiting.close()
            for message in (HELLO, Heartbeat()):
                await connection.send(message)
                assert await connection.receive(10.0) == (message, b"")
            assert listening_here._socket.accepted > 1
            listening_here._socket = plain
            connection.abort()

    run(work())


class Endless:
    """A listening socket for which there is always another connection, of somebody who is gone."""

    def __init__(self, plain):
        self.plain, self.accepted = plain, 0

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def accept(self):
        self.accepted += 1
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours, ("10.0.0.1", 1)
