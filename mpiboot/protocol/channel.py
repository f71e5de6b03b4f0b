"""The channel between boot and agents, and between agents: its connections, and the encoding of its messages.

An agent reads boot's address in the job directory and dials it over TLS. Both sides must show the job's certificate.

Boot and agents import this module. It imports `protocol.channel_messages`, and what an agent may import at its start.

A message is one frame: two lengths, the message in JSON, and bytes that some messages carry.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from asyncio import sslproto
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mpiboot.protocol.channel_messages import KINDS
from mpiboot.protocol.messages import MessageError, from_json, to_json

# Each side sends a heartbeat this often.
HEARTBEAT_S = 5.0
# A side that has received nothing for this long closes the connection.
CONNECTION_SILENCE_S = 15.0
# An agent that has not heard of boot for this long, over any connection, gives up; boot counts such an agent as lost.
SILENCE_S = 45.0
# Bounds on what the other side can make this side wait for and hold in memory.
HANDSHAKE_TIMEOUT_S = 10.0
JSON_MAX_BYTES = 1024**2
PAYLOAD_MAX_BYTES = 4 * 1024**2
BUFFER_BYTES = 1024**2
# Addresses are dialled one after the other, without waiting for the earlier ones to fail. The next one is dialled after a
# short pause if nobody has accepted the connection, and after a longer one if somebody has: it may be boot, and busy.
NEXT_ADDRESS_S = 0.1
NEXT_ANSWERING_ADDRESS_S = 2.0
# How long the other side of a closed connection may take to close it, too.
CLOSE_S = 2.0
# The size of asyncio's buffer for each TLS connection, by default 256 KiB. Boot has a connection to each node.
sslproto.SSLProtocol.max_size = 1 << 16

Greeting = TypeVar("Greeting")

_LENGTHS = struct.Struct("!II")


def encode(message: Any) -> bytes:
    """Return a message without payload as bytes for `Connection.write`; encode a message to many agents only once."""
    return _head(message, b"")


def _head(message: Any, payload: bytes | memoryview) -> bytes:
    data = to_json(message)
    return _LENGTHS.pack(len(data), len(payload)) + data


class Connection:
    """One connection of the channel: sends and receives messages.

    Parameters
    ----------
    reader, writer : asyncio.StreamReader, asyncio.StreamWriter
        An encrypted connection, whose other side has shown the job's certificate.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()

    @property
    def unsent_bytes(self) -> int:
        """How many bytes wait in this process, because the other side has not taken earlier ones yet."""
        try:
            return self._writer.transport.get_write_buffer_size()
        except AttributeError:  # in Python 3.10, if the connection is lost
            return 0

    def write(self, data: bytes) -> None:
        """Send the bytes of `encode`, without waiting until they are on their way."""
        self._writer.write(data)

    def post(self, message: Any, payload: bytes | memoryview = b"") -> None:
        """Send a message without waiting until it is on its way."""
        self.write(_head(message, payload))
        if payload:
            self._writer.write(payload)  # separately: it may be large, and joining would copy it

    async def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        """Send a message, and wait until most of it is on its way.

        Raises
        ------
        OSError
            The connection is lost.
        """
        self.post(message, payload)
        await self.drain()

    async def drain(self) -> None:
        """Wait until most of what was posted is on its way.

        Raises
        ------
        OSError
            The connection is lost.
        """
        async with self._turn:  # Python 3.10.4 and earlier let one task wait at a time
            await self._writer.drain()

    async def receive(self, timeout_s: float | None = None) -> tuple[Any, bytes]:
        """Receive the next message and the bytes that it carries.

        Parameters
        ----------
        timeout_s : float, seconds, or None
            How long to wait; None: CONNECTION_SILENCE_S.

        Raises
        ------
        OSError
            The connection is lost: closed, silent for too long, or what arrived is not a message.
        """
        timeout_s = CONNECTION_SILENCE_S if timeout_s is None else timeout_s
        # Not wait_for: it makes a task for each message, and can lose a cancellation (Python 3.10 and 3.11).
        timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, timeout_s)
        try:
            return await self._receive()
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("the connection was closed") from error
        except MessageError as error:
            raise ConnectionError(f"what arrived is not a message: {error}") from error
        finally:
            timer.cancel()

    def _expire(self, timeout_s: float) -> None:
        self._reader.set_exception(ConnectionError(f"nothing was heard for {timeout_s:g} s"))

    async def _receive(self) -> tuple[Any, bytes]:
        json_bytes, payload_bytes = _LENGTHS.unpack(await self._reader.readexactly(_LENGTHS.size))
        if json_bytes > JSON_MAX_BYTES or payload_bytes > PAYLOAD_MAX_BYTES:
            raise MessageError(f"it claims {json_bytes} and {payload_bytes} bytes")
        message = from_json(await self._reader.readexactly(json_bytes), KINDS)
        return message, await self._reader.readexactly(payload_bytes)

    async def end(self, timeout_s: float | None = None) -> None:
        """Close the connection; wait until all that was posted has been taken, and the other side has closed it, too.

        Parameters
        ----------
        timeout_s : float, seconds, or None
            How long to wait; None: CLOSE_S.
        """
        self._writer.close()
        try:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(
                    self._writer.wait_closed(), CLOSE_S if timeout_s is None else timeout_s
                )
        finally:
            self.abort()

    def close(self) -> None:
        """Close the connection once what was posted is on its way, without waiting for it."""
        self._writer.close()
        # Python 3.10 would wait for the other side for ever.
        asyncio.get_running_loop().call_later(CLOSE_S, self.abort)

    def abort(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()


class BlockingConnection:
    """A connection for a thread that receives much: asyncio's streams take four times the CPU time for it.

    Parameters
    ----------
    host, port : str, int
        The other side's address.
    context : SSLContext
        From `client_context`.

    Raises
    ------
    OSError
        Nobody answers there, or nobody with the job's certificate.
    """

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        try:
            plain = socket.create_connection((host, port), HANDSHAKE_TIMEOUT_S)
            try:
                self._socket = context.wrap_socket(plain)
            except BaseException:
                plain.close()
                raise
        except TimeoutError as error:
            raise ConnectionError("no answer") from error
        self._buffer = memoryview(bytearray(PAYLOAD_MAX_BYTES))

    def send(self, message: Any) -> None:
        """Send a message; raise OSError if the connection is lost."""
        self._socket.sendall(encode(message))

    def receive(self, timeout_s: float) -> tuple[Any, memoryview]:
        """Receive the next message and its payload, which is valid until the next call.

        Raises
        ------
        OSError
            The connection is lost: closed, silent for `timeout_s` seconds, or what arrived is not a message.
        """
        deadline = time.monotonic() + timeout_s
        try:
            json_bytes, payload_bytes = _LENGTHS.unpack(self._read(_LENGTHS.size, deadline))
            if json_bytes > JSON_MAX_BYTES or payload_bytes > PAYLOAD_MAX_BYTES:
                raise MessageError(f"it claims {json_bytes} and {payload_bytes} bytes")
            message = from_json(bytes(self._read(json_bytes, deadline)), KINDS)
            return message, self._read(payload_bytes, deadline)
        except TimeoutError as error:
            raise ConnectionError(f"nothing was heard for {timeout_s:g} s") from error
        except MessageError as error:
            raise ConnectionError(f"what arrived is not a message: {error}") from error

    def _read(self, size: int, deadline: float) -> memoryview:
        view = self._buffer[:size]
        while view:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionError("the connection was closed")
            view = view[count:]
        return self._buffer[:size]

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def server_context(tls: Path) -> ssl.SSLContext:
    """Return the TLS settings of a side that is dialled.

    Parameters
    ----------
    tls : Path
        The folder of the job's secrets.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, tls)
    context.num_tickets = 0  # no session is resumed
    return context


def client_context(tls: Path) -> ssl.SSLContext:
    """Return the TLS settings of a side that dials.

    Parameters
    ----------
    tls : Path
        The folder of the job's secrets.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, tls)


def _context(protocol: int, tls: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The job's own authority signs only the job's certificates, so names need no check.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(tls / "ca.pem")
    context.load_cert_chain(tls / "worker.pem", tls / "worker-key.pem")
    return context


async def accepted(connection: socket.socket, context: ssl.SSLContext) -> Connection:
    """Return the channel's end of an accepted connection, once the other side has shown the job's certificate.

    Raises
    ------
    OSError
        The connection is lost, or the other side has not shown the certificate within HANDSHAKE_TIMEOUT_S.
    """
    try:
        _send_at_once(connection)
    except OSError:
        connection.close()
        raise
    reader = asyncio.StreamReader(limit=BUFFER_BYTES)
    writers: list[asyncio.StreamWriter] = []
    protocol = asyncio.StreamReaderProtocol(reader, lambda _, writer: writers.append(writer))
    try:
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: protocol, connection, ssl=context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
        )
    except BaseException:
        for writer in writers:  # cancelled just after the handshake: asyncio would wait for the other side
            writer.transport.abort()
        raise
    return Connection(reader, writers[0])


def _send_at_once(connection: socket.socket) -> None:
    """Send small messages at once, without waiting up to 40 ms for an acknowledgement (tcp(7), TCP_NODELAY).

    asyncio sets this only for sockets that were made with their protocol's number.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def dial(host: str, port: int, context: ssl.SSLContext) -> Connection:
    """Connect to one address.

    Raises
    ------
    OSError
        Nobody answers there, or nobody with the job's certificate.
    """
    return await _dial(host, port, context, lambda: None)


async def _dial(host: str, port: int, context: ssl.SSLContext, answered: Callable[[], object]) -> Connection:
    """Connect to one address as `dial` does; call `answered` as soon as somebody has accepted the connection."""

    async def open_connection() -> Connection:
        loop = asyncio.get_running_loop()
        plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            plain.setblocking(False)
            _send_at_once(plain)
            await loop.sock_connect(plain, (host, port))
            answered()
        except BaseException:
            plain.close()
            raise
        streams = await asyncio.open_connection(
            sock=plain,
            ssl=context,
            server_hostname="",
            limit=BUFFER_BYTES,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        )
        return Connection(*streams)

    try:
        return await asyncio.wait_for(open_connection(), HANDSHAKE_TIMEOUT_S)
    except asyncio.TimeoutError as error:
        raise ConnectionError("no answer") from error


async def dial_first(
    addresses: Sequence[str],
    port: int,
    context: ssl.SSLContext,
    greet: Callable[[Connection], Awaitable[Greeting]],
) -> tuple[Connection, Greeting]:
    """Dial several addresses of one host, and return the first connection that `greet` succeeds with.

    Some addresses may lead nowhere, or to another host: many hosts have the same address on a bridge of their own. The
    next address is dialled when the one before has failed, or has not answered for a moment.

    Parameters
    ----------
    addresses : sequence of str
        IPv4 addresses, the preferred one first.
    port : int
        The port, the same on all.
    context : SSLContext
        From `client_context`.
    greet : callable
        Exchanges the first messages; raises OSError if the other side is not the right one.

    Returns
    -------
    tuple
        The connection, and what `greet` has returned for it.

    Raises
    ------
    OSError
        No address succeeded; the message gives the reasons.
    """
    attempts: list[asyncio.Task[Connection]] = []
    running: set[asyncio.Task[Connection]] = set()
    kept, failures = None, []
    try:
        for host in (*addresses, None):
            answered, patience_s = asyncio.Event(), None
            if host is not None:
                attempts.append(asyncio.create_task(_dial(host, port, context, answered.set)))
                running.add(attempts[-1])
                patience_s = NEXT_ADDRESS_S
            while running:
                done, running = await asyncio.wait(
                    running, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    if patience_s == NEXT_ANSWERING_ADDRESS_S or not answered.is_set():
                        break
                    patience_s = NEXT_ANSWERING_ADDRESS_S
                for task in done:
                    try:
                        connection = task.result()
                        greeting = await greet(connection)
                    except OSError as error:
                        failures.append(str(error) or type(error).__name__)
                    else:
                        kept = connection
                        return connection, greeting
    finally:
        for task in attempts:
            task.cancel()
        for result in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(result, Connection) and result is not kept:
                result.abort()
    reasons = "; ".join(dict.fromkeys(failures))
    raise ConnectionError(f"boot does not answer at {', '.join(addresses)}, port {port}: {reasons}")
