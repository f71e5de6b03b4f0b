"""A stranger who opens connections to listening sockets and holds them. Standard library only, for any account and host:

    python holder.py [--mode MODE] [--connections N] [--seconds S] [--again] [--source ADDRESS] HOST:PORT...

Each target gets N connections in each mode. The output is one JSON object per target and mode; see `Figures`.
`hold` does the same from a test, within an event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import resource
import ssl
import statistics
import sys
import time
from collections.abc import Iterator

CONNECT_S = 10.0
DRIP_S = 1.0
CHUNK = b"x" * 65536
MODES = {
    "silent": "sends nothing",
    "garbage": "sends 1000 random bytes",
    "half-hello": "sends the first half of a TLS ClientHello",
    "hello": "sends a whole TLS ClientHello, and does not answer the server's",
    "half-head": "sends half of the head of an HTTP request",
    "drip": "sends an endless head of an HTTP request, one byte per second",
    "drip-hello": "sends a TLS ClientHello, one byte per second",
    "head": "sends an HTTP request, reads the response, and keeps the connection",
    "body": "announces an HTTP body of 99 MB, and sends as much as the server takes",
    "chunked": "sends an HTTP body in chunks, for as long as the server takes it",
}


@dataclasses.dataclass
class Figures:
    """What happened to the connections to one target in one mode.

    Attributes
    ----------
    target, mode : str
        `HOST:PORT`, and a key of `MODES`.
    opened, failed : int
        Connections that were opened, and attempts that failed or took longer than `CONNECT_S`.
    closed : int
        Connections that the server has closed.
    held_max : int
        How many were open at once, as the stranger sees it; the server may not have accepted all of them.
    held_s : list of float, seconds
        Shortest, median and longest time for which a connection was held before the server closed it.
    still_held_s : float, seconds
        The longest time for which a connection was held that the server has not closed.
    sent_bytes : int
        Bytes that the server's side has taken, all connections together.
    answers : dict of str to int
        First words of what the server sent, and on how many connections.
    """

    target: str
    mode: str
    opened: int = 0
    failed: int = 0
    closed: int = 0
    held_max: int = 0
    held_s: list[float] = dataclasses.field(default_factory=list)
    still_held_s: float = 0.0
    sent_bytes: int = 0
    answers: dict[str, int] = dataclasses.field(default_factory=dict)


class Connection(asyncio.Protocol):
    """One connection: sends what its mode demands until the server closes it."""

    def __init__(self, mode: str, figures: Figures) -> None:
        self.figures = figures
        self.pieces = pieces(mode)
        self.piece_s = DRIP_S if mode.startswith("drip") else 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writable = asyncio.Event()
        self.answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport, self.since = transport, time.monotonic()
        self.transport.set_write_buffer_limits(0)
        self.figures.opened += 1
        self.figures.held_max = max(self.figures.held_max, self.figures.opened - self.figures.closed)
        self.writable.set()
        self.sending = asyncio.ensure_future(self.send())

    async def send(self) -> None:
        for piece in self.pieces:
            await self.writable.wait()
            self.transport.write(piece)
            self.figures.sent_bytes += len(piece)
            await asyncio.sleep(self.piece_s)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if not self.answered:
            self.answered = True
            words = " ".join(data.decode("ascii", "replace").split()[:2]) if data[:1].isalpha() else "TLS"
            self.figures.answers[words] = self.figures.answers.get(words, 0) + 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.sending.cancel()
        if not self.ended.done():
            self.figures.closed += 1
            self.figures.held_s.append(time.monotonic() - self.since)
            self.ended.set_result(None)

    def give_up(self) -> None:
        """Close the connection, which the server has not closed."""
        if not self.ended.done():
            self.figures.still_held_s = max(self.figures.still_held_s, time.monotonic() - self.since)
            self.ended.cancel()
        self.sending.cancel()
        self.transport.abort()


def client_hello() -> bytes:
    """Return a TLS ClientHello of this Python's OpenSSL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="stranger").do_handshake()
    return outgoing.read()


def pieces(mode: str) -> Iterator[bytes]:
    """Yield what a connection sends, in the order of sending."""
    if mode == "garbage":
        yield os.urandom(1000)
    elif mode == "half-hello":
        yield client_hello()[:150]
    elif mode == "hello":
        yield client_hello()
    elif mode == "half-head":
        yield b"GET /status HTTP/1.1\r\nHost: stranger\r\nCookie: a="
    elif mode == "drip":
        yield b"GET /status HTTP/1.1\r\nHost: stranger\r\nCookie: "
        while True:
            yield b"a"
    elif mode == "drip-hello":
        hello = client_hello()
        yield from (hello[i : i + 1] for i in range(len(hello)))
    elif mode == "head":
        yield b"GET /status HTTP/1.1\r\nHost: stranger\r\n\r\n"
    elif mode == "body":
        yield b"POST /status HTTP/1.1\r\nHost: stranger\r\nContent-Length: 99000000\r\n\r\n"
        yield from [CHUNK] * (99_000_000 // len(CHUNK))
    elif mode == "chunked":
        yield b"POST /status HTTP/1.1\r\nHost: stranger\r\nTransfer-Encoding: chunked\r\n\r\n"
        while True:
            yield b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK)


async def hold(
    host: str,
    port: int,
    mode: str = "silent",
    *,
    connections: int = 1,
    seconds: float = 20.0,
    again: bool = False,
    source: str | None = None,
) -> Figures:
    """Open connections in one mode, and hold them.

    Parameters
    ----------
    host, port
        The target.
    mode : str
        A key of `MODES`.
    connections : int
        How many to hold at once.
    seconds : float
        How long to hold them; ends earlier once the server has closed all.
    again : bool
        Whether to open another connection for each that the server closes.
    source : str, optional
        The address to connect from.

    Returns
    -------
    Figures
        What happened to them.
    """
    loop = asyncio.get_running_loop()
    figures, give_up_at, held = Figures(f"{host}:{port}", mode), loop.time() + seconds, set[Connection]()

    async def hold_one() -> None:
        while loop.time() < give_up_at:
            opening = loop.create_connection(
                lambda: Connection(mode, figures), host, port, local_addr=(source, 0) if source else None
            )
            try:
                _, connection = await asyncio.wait_for(opening, CONNECT_S)
            except (OSError, asyncio.TimeoutError):
                figures.failed += 1
                await asyncio.sleep(0.1)
            else:
                held.add(connection)
                await asyncio.wait([connection.ended])
                held.discard(connection)
            if not again:
                return

    holding = [asyncio.ensure_future(hold_one()) for _ in range(connections)]
    try:
        await asyncio.wait(holding, timeout=seconds)
    finally:
        for connection in list(held):
            connection.give_up()
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)
    if figures.held_s:
        figures.held_s = [round(pick(figures.held_s), 2) for pick in (min, statistics.median, max)]
    figures.still_held_s = round(figures.still_held_s, 2)
    return figures


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="+", metavar="HOST:PORT")
    parser.add_argument("--mode", action="append", choices=list(MODES), help="default: each")
    parser.add_argument(
        "--connections", type=int, default=20, help="per target and mode (default %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="default %(default)s")
    parser.add_argument("--again", action="store_true", help="reopen what the server closes")
    parser.add_argument("--source", metavar="ADDRESS", help="connect from this address")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    targets = [target.rpartition(":") for target in options.targets]
    holds = [
        hold(
            host.strip("[]"),
            int(port),
            mode,
            connections=options.connections,
            seconds=options.seconds,
            again=options.again,
            source=options.source,
        )
        for host, _, port in targets
        for mode in options.mode or MODES
    ]
    for figures in await asyncio.gather(*holds):
        sys.stdout.write(json.dumps(dataclasses.asdict(figures)) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
