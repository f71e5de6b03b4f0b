"""The channel's end for a thread that receives much."""

import asyncio
import socket
import struct

import pytest
from channelends import listening, make_tls, run

from mpiboot.protocol import channel
from mpiboot.protocol.channel import BlockingConnection, client_context
from mpiboot.protocol.channel_messages import ArchivePart, ArchiveRequest

REQUEST = ArchiveRequest(1, 0)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return make_tls(tmp_path_factory.mktemp("job"))


def exchange(tls, serve, ask):
    """Return what `ask` returns for a connection, in a thread, while `serve` has the other end."""

    def in_thread(port):
        connection = BlockingConnection("127.0.0.1", port, client_context(tls))
        try:
            return ask(connection)
        finally:
            connection.close()

    async def work():
        async with listening(tls, serve) as listener:
            return await asyncio.to_thread(in_thread, listener.port)

    return run(work())


def test_messages_and_large_payloads(tls):
    payload = bytes(range(256)) * (channel.PAYLOAD_MAX_BYTES // 256)

    async def serve(connection):
        assert await connection.receive() == (REQUEST, b"")
        for size in (0, 1, len(payload)):
            await connection.send(ArchivePart(), payload[:size])
        await connection.receive()

    def ask(connection):
        connection.send(REQUEST)
        return [(message, bytes(data)) for message, data in (connection.receive(20.0) for _ in range(3))]

    assert exchange(tls, serve, ask) == [(ArchivePart(), payload[:size]) for size in (0, 1, len(payload))]


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"", "nothing was heard for 0.3 s"),
        (channel.encode(ArchivePart())[:-1], "nothing was heard for 0.3 s"),
        (struct.pack("!II", channel.JSON_MAX_BYTES + 1, 0), "it claims 1048577 and 0 bytes"),
        (struct.pack("!II", 10, channel.PAYLOAD_MAX_BYTES + 1), "it claims 10 and 4194305 bytes"),
        (struct.pack("!II", 2, 0) + b"{}", "what arrived is not a message"),
        (None, "the connection was closed"),
    ],
    ids=["silence", "silence within a message", "large", "large payload", "rubbish", "end"],
)
def test_what_loses_the_connection(tls, sent, why):
    async def serve(connection):
        if sent is not None:
            connection.write(sent)
            await connection.receive()

    with pytest.raises(ConnectionError, match=why):
        exchange(tls, serve, lambda connection: connection.receive(0.3))


def test_bytes_that_come_singly_have_one_deadline(tls):
    async def serve(connection):
        for byte in channel.encode(ArchivePart()):
            connection.write(bytes([byte]))
            await asyncio.sleep(0.1)

    with pytest.raises(ConnectionError, match=r"nothing was heard for 0\.3 s"):
        exchange(tls, serve, lambda connection: connection.receive(0.3))


def test_who_has_no_certificate_of_the_job_is_refused(tls, tmp_path):
    stranger = make_tls(tmp_path)

    async def serve(connection):
        raise AssertionError("served a stranger")

    async def work():
        async with listening(tls, serve) as listener:
            context = client_context(stranger)
            with pytest.raises(OSError, match="certificate verify failed"):
                await asyncio.to_thread(BlockingConnection, "127.0.0.1", listener.port, context)

    run(work())


def test_a_listener_that_says_nothing(tls, monkeypatch):
    monkeypatch.setattr(channel, "HANDSHAKE_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ConnectionError, match="no answer"):
        BlockingConnection("127.0.0.1", silent.getsockname()[1], client_context(tls))
