"""The channel's connections: frames and their bounds, deadlines, the race over several addresses, and the end."""

import asyncio
import contextlib
import socket
import struct

import pytest
from channelends import descriptors, listening, make_tls, run, until

from mpiboot.protocol import channel
from mpiboot.protocol.channel import (
    JSON_MAX_BYTES,
    PAYLOAD_MAX_BYTES,
    Connection,
    client_context,
    dial,
    dial_first,
    encode,
    server_context,
)
from mpiboot.protocol.channel_messages import Close, Heartbeat, Hello, Orders, Output, Question, Sighting
from mpiboot.protocol.messages import to_json

HELLO = Hello("1", "n1", "h1", 7)
ANSWER = Sighting(True)
MIB = 2**20


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return make_tls(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def other_tls(tmp_path_factory):
    return make_tls(tmp_path_factory.mktemp("other"))


def frame(message, payload=b""):
    """The bytes of a message, written out."""
    data = to_json(message)
    return struct.pack("!II", len(data), len(payload)) + data + payload


def incoming(*pieces, end=False):
    """A connection whose other side has sent these bytes, and ended if `end`."""
    reader = asyncio.StreamReader(limit=channel.BUFFER_BYTES)
    for piece in pieces:
        reader.feed_data(piece)
    if end:
        reader.feed_eof()
    return Connection(reader, None)


# Frames.


def test_frames_come_one_after_the_other():
    async def work():
        connection = incoming(frame(HELLO) + frame(Output(), b"\x00\xff" * 1000) + frame(Heartbeat()))
        return [await connection.receive() for _ in range(3)]

    assert run(work()) == [(HELLO, b""), (Output(), b"\x00\xff" * 1000), (Heartbeat(), b"")]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, -4, -3, -1])
def test_a_cut_frame_is_a_lost_connection(size):
    async def work():
        with pytest.raises(ConnectionError, match="the connection was closed"):
            await incoming(frame(Output(), b"abc")[:size], end=True).receive()

    run(work())


@pytest.mark.parametrize(
    "lengths", [(JSON_MAX_BYTES + 1, 0), (0, PAYLOAD_MAX_BYTES + 1), (2**32 - 1, 2**32 - 1)]
)
def test_a_frame_that_claims_too_much_is_refused_before_it_is_read(lengths):
    async def work():
        with pytest.raises(ConnectionError, match=f"it claims {lengths[0]} and {lengths[1]} bytes"):
            await incoming(struct.pack("!II", *lengths)).receive()

    run(work())


def test_a_frame_of_the_greatest_size_is_taken():
    async def work():
        reason = "x" * (JSON_MAX_BYTES - len(frame(Close(""))) + struct.calcsize("!II"))
        whole = frame(Close(reason), bytes(PAYLOAD_MAX_BYTES))
        assert struct.unpack_from("!II", whole) == (JSON_MAX_BYTES, PAYLOAD_MAX_BYTES)
        return await incoming(whole).receive() == (Close(reason), bytes(PAYLOAD_MAX_BYTES))

    assert run(work())


@pytest.mark.parametrize("data", [b"", b"{}", b"GET / HT", b'{"kind":"Close","reason":0}'])
def test_what_is_no_message_loses_the_connection(data):
    async def work():
        with pytest.raises(ConnectionError, match="what arrived is not a message"):
            await incoming(struct.pack("!II", len(data), 0) + data).receive()

    run(work())


# Time.


@pytest.mark.parametrize("size", [0, 8, -1])
def test_silence_has_a_deadline_even_within_a_frame(size):
    async def work():
        connection = incoming(frame(Output(), b"abc")[:size])
        with pytest.raises(ConnectionError, match=r"nothing was heard for 0\.05 s"):
            await connection.receive(0.05)

    run(work())


def test_the_deadline_counts_from_each_receive(monkeypatch):
    monkeypatch.setattr(channel, "CONNECTION_SILENCE_S", 0.2)

    async def work():
        connection = incoming()
        for _ in range(4):
            asyncio.get_running_loop().call_later(0.1, connection._reader.feed_data, frame(Heartbeat()))
            await connection.receive()
        with pytest.raises(ConnectionError, match=r"nothing was heard for 0\.2 s"):
            await connection.receive()

    run(work())


@pytest.mark.parametrize("steps", range(6))
def test_who_is_cancelled_while_a_message_arrives_ends(steps):
    """wait_for of Python 3.10 and 3.11 would go on."""

    async def follow(connection):
        while True:
            await connection.receive()

    async def work():
        connection = incoming()
        task = asyncio.create_task(follow(connection))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        connection._reader.feed_data(frame(Heartbeat()))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5)
        assert done and task.cancelled()

    run(work())


# The end of a connection.


def test_all_that_was_posted_arrives_before_the_end(tls):
    received = []

    async def serve(connection):
        await asyncio.sleep(0.2)  # slower than the one that posts
        with contextlib.suppress(OSError):
            while True:
                received.append(len((await connection.receive())[1]))

    async def work():
        async with listening(tls, serve) as listener:
            connection = await dial("127.0.0.1", listener.port, client_context(tls))
            for _ in range(16):
                connection.post(Output(), bytes(MIB))
            await connection.end(20.0)

    run(work())
    assert received == [MIB] * 16


@pytest.mark.parametrize("how", ["end", "close", "abort"])
def test_a_connection_ends_though_the_other_side_does_not(tls, monkeypatch, how):
    monkeypatch.setattr(channel, "CLOSE_S", 0.1)

    async def work():
        connections = []
        taking = asyncio.start_server(
            lambda *streams: connections.append(streams), "127.0.0.1", 0, ssl=server_context(tls)
        )
        async with await taking as server:
            port = server.sockets[0].getsockname()[1]
            connection = await dial("127.0.0.1", port, client_context(tls))
            await until(lambda: bool(connections), "connection")
            ((_, writer),) = connections
            writer.transport.pause_reading()
            held = descriptors()
            connection.post(Output(), bytes(4 * MIB))
            waiting = getattr(connection, how)()
            if waiting:
                await waiting
            await until(lambda: descriptors() < held, "closed socket")
            writer.transport.abort()
            connections.clear()
            await asyncio.sleep(0)
            assert connection.unsent_bytes >= 0  # Python 3.10 does not know the size any more

    run(work())


def test_several_tasks_send_on_a_connection_that_is_full(tls):
    received = []

    async def serve(connection):
        await asyncio.sleep(0.2)
        with contextlib.suppress(OSError):
            while True:
                received.append(len((await connection.receive())[1]))

    async def work():
        async with listening(tls, serve) as listener:
            connection = await dial("127.0.0.1", listener.port, client_context(tls))
            await asyncio.gather(*(connection.send(Output(), bytes(MIB)) for _ in range(24)))
            await until(lambda: len(received) == 24, "24 messages")
            await connection.end()

    run(work())


def test_who_sends_on_a_lost_connection_learns_it(tls):
    async def serve(connection):
        connection.abort()

    async def work():
        async with listening(tls, serve) as listener:
            connection = await dial("127.0.0.1", listener.port, client_context(tls))
            with pytest.raises(OSError):
                await connection.receive(10.0)
            with pytest.raises(OSError):
                for _ in range(10):  # asyncio needs a step or two
                    await connection.send(Heartbeat())
                    await asyncio.sleep(0)
            connection.close()

    run(work())


# The race over several addresses.


class Boot:
    """Answers each `Hello`, and counts them."""

    def __init__(self):
        self.hellos = 0
        self.connections = 0

    async def serve(self, connection):
        self.connections += 1
        try:
            if isinstance((await connection.receive())[0], Hello):
                self.hellos += 1
                await connection.send(ANSWER)
                await connection.receive()
        finally:
            self.connections -= 1


async def greet(connection):
    await connection.send(HELLO)
    answer, _ = await connection.receive()
    if not isinstance(answer, Sighting):
        raise ConnectionError("not boot")
    return answer


async def answer_questions_alone(connection):
    """What another agent does."""
    while isinstance((await connection.receive())[0], Question):
        await connection.send(ANSWER)


async def say_something_else(connection):
    await connection.receive()
    await connection.send(Close("why"))


@contextlib.contextmanager
def bound(host, port, backlog=5):
    with socket.create_server((host, port), backlog=backlog) as taken:
        yield taken


@contextlib.contextmanager
def unreachable(host, port):
    """An address that does not answer: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(bound(host, port, 0))
        for _ in range(20):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.1)
            try:
                filler.connect((host, port))
            except TimeoutError:
                break
        yield taken


@pytest.fixture
def port(monkeypatch):
    """The port of all listeners: free at 127.0.0.1 and at 127.0.0.2, and kept from other processes until the end."""
    plain = socket.create_server
    with contextlib.ExitStack() as stack:
        while True:
            one, other = (stack.enter_context(socket.socket()) for _ in range(2))
            for held in (one, other):
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
            number = one.getsockname()[1]
            with contextlib.suppress(OSError):  # taken at the other address
                other.bind(("127.0.0.2", number))
                break
        monkeypatch.setattr(
            socket, "create_server", lambda address, **more: plain((address[0], number), **more)
        )
        yield number


@contextlib.asynccontextmanager
async def elsewhere(kind, port, tls, other_tls):
    """Somebody else, who listens at 127.0.0.2, on the same port as boot at 127.0.0.1."""
    if kind == "refuses":
        yield
    elif kind in ("unreachable", "silent"):
        with unreachable("127.0.0.2", port) if kind == "unreachable" else bound("127.0.0.2", port):
            yield
    else:
        serve, secrets = {
            "other authority": (answer_questions_alone, other_tls),
            "peer": (answer_questions_alone, tls),
            "another answer": (say_something_else, tls),
        }[kind]
        async with listening(secrets, serve, "127.0.0.2"):
            yield


KINDS_OF_OTHERS = ["refuses", "unreachable", "silent", "other authority", "peer", "another answer"]


@pytest.mark.parametrize("kind", KINDS_OF_OTHERS)
def test_an_address_that_is_not_boots_is_passed_by(tls, other_tls, port, monkeypatch, kind):
    monkeypatch.setattr(channel, "NEXT_ANSWERING_ADDRESS_S", 0.3)
    boot = Boot()

    async def work():
        context = client_context(tls)
        async with (
            listening(tls, boot.serve),
            elsewhere(kind, port, tls, other_tls),
        ):
            connection, answer = await dial_first(["127.0.0.2", "127.0.0.1"], port, context, greet)
            assert answer == ANSWER
            await connection.end()

    run(work())
    assert (boot.hellos, boot.connections) == (1, 0)


@pytest.mark.parametrize("kind", KINDS_OF_OTHERS)
def test_if_boot_is_nowhere_the_error_says_why(tls, other_tls, port, monkeypatch, kind):
    monkeypatch.setattr(channel, "NEXT_ANSWERING_ADDRESS_S", 0.1)
    monkeypatch.setattr(channel, "HANDSHAKE_TIMEOUT_S", 0.5)
    reason = {
        "refuses": "Connect call failed",
        "unreachable": "no answer",
        "silent": "no answer",
        "other authority": "certificate verify failed",
        "peer": "(closed|reset)",
        "another answer": "not boot",
    }[kind]

    async def work():
        async with elsewhere(kind, port, tls, other_tls):
            with pytest.raises(
                ConnectionError, match=rf"boot does not answer at 127.*, port {port}: .*{reason}"
            ):
                await dial_first(["127.0.0.2", "127.0.0.1"], port, client_context(tls), greet)

    run(work())


def test_of_two_addresses_that_lead_to_boot_one_is_used(tls):
    boot = Boot()

    async def work():
        async with listening(tls, boot.serve, "") as listener:
            for _ in range(10):
                connection, _ = await dial_first(
                    ["127.0.0.1", "127.0.0.2", "127.0.0.3"], listener.port, client_context(tls), greet
                )
                assert boot.connections == 1
                await connection.end()
                await until(lambda: boot.connections == 0, "end at boot")

    run(work())
    assert boot.hellos == 10


def test_a_busy_boot_is_dialled_once(tls, monkeypatch):
    """A thousand agents make boot busy; that each dials all its addresses must not make it busier."""
    monkeypatch.setattr(channel, "NEXT_ADDRESS_S", 0.05)
    boot, accepted = Boot(), []

    async def work():
        with bound("", 0) as plain:
            plain.setblocking(False)
            port = plain.getsockname()[1]
            dialling = asyncio.create_task(
                dial_first(["127.0.0.1", "127.0.0.2"], port, client_context(tls), greet)
            )
            await asyncio.sleep(0.5)  # boot is busy
            with contextlib.suppress(BlockingIOError):
                while True:
                    accepted.append(plain.accept()[0])
            connections = [await channel.accepted(one, server_context(tls)) for one in accepted]
            serving = asyncio.gather(*map(boot.serve, connections), return_exceptions=True)
            connection, _ = await dialling
            connection.abort()
            await serving
            for one in connections:
                one.abort()
            await asyncio.sleep(0)

    run(work())
    assert (len(accepted), boot.hellos) == (1, 1)


def test_both_of_two_slow_answers_leave_one_connection(tls, monkeypatch):
    """If the next address was dialled nevertheless, the second connection is closed before it says anything."""
    monkeypatch.setattr(channel, "NEXT_ADDRESS_S", 0.0)
    monkeypatch.setattr(channel, "NEXT_ANSWERING_ADDRESS_S", 0.0)
    boot = Boot()

    async def work():
        async with listening(tls, boot.serve, "") as listener:
            connection, _ = await dial_first(
                [f"127.0.0.{k}" for k in range(1, 9)], listener.port, client_context(tls), greet
            )
            await until(lambda: boot.connections == 1, "single connection")
            assert boot.hellos == 1
            await connection.send(Heartbeat())
            connection.abort()

    run(work())
    assert boot.hellos == 1


def test_what_greet_raises_besides_ends_the_race(tls):
    boot = Boot()

    async def refuse(connection):
        await greet(connection)
        raise LookupError("refused")

    async def work():
        async with listening(tls, boot.serve, "") as listener:
            with pytest.raises(LookupError):
                await dial_first(["127.0.0.1", "127.0.0.2"], listener.port, client_context(tls), refuse)
            await until(lambda: boot.connections == 0, "closed connection")

    run(work())


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 12, 20, 40])
def test_a_cancelled_race_leaves_nothing(tls, steps):
    boot = Boot()

    async def work():
        async with listening(tls, boot.serve, "") as listener:
            task = asyncio.create_task(
                dial_first(["127.0.0.1", "127.0.0.2"], listener.port, client_context(tls), greet)
            )
            for _ in range(steps):
                await asyncio.sleep(0.0005)
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(result, tuple):
                result[0].abort()
            await until(lambda: boot.connections == 0, "closed connection")

    run(work())


def test_no_message_waits_for_the_acknowledgement_of_the_one_before(tls):
    sides = []

    async def serve(connection):
        sides.append(connection)
        await connection.receive()

    async def work():
        async with listening(tls, serve) as listener:
            sides.append(await dial("127.0.0.1", listener.port, client_context(tls)))
            await until(lambda: len(sides) == 2, "connection")
            for side in sides:
                plain = side._writer.get_extra_info("socket")
                assert plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                side.abort()

    run(work())


def test_an_encoded_message_is_what_post_sends(tls):
    orders = Orders(0, "n1", 1, "/tmp", "k", 1, None, None, None)
    received = []

    async def serve(connection):
        received.extend([await connection.receive(), await connection.receive()])

    async def work():
        async with listening(tls, serve) as listener:
            connection = await dial("127.0.0.1", listener.port, client_context(tls))
            connection.write(encode(orders))
            connection.post(orders)
            await until(lambda: len(received) == 2, "two messages")
            await connection.end()

    run(work())
    assert received == [(orders, b"")] * 2
