"""The transport `tree`: agents pass the archive on to each other while it arrives; the shared file system is read once.

The nodes that lack the environment form a tree. Each node takes the archive from its parent, and passes it on to up to
`FAN_OUT` nodes. If a source is gone, silent or slow, or sends damaged bytes, the node passes it by: it takes the rest
from the parent's parent, and so on up to the root, and at last from the file.

Only the agent imports this module. It imports `agent.archive_copy`, `protocol.channel` and its messages.
"""

import asyncio
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from envpack.archive.damage import note_damage
from envpack.stage import arrival
from mpiboot.agent.archive_copy import ArchiveCopy, CopyError, DamagedError, send_in_time
from mpiboot.common.faults import unexpected
from mpiboot.protocol.channel import BlockingConnection, Connection
from mpiboot.protocol.channel_messages import ArchivePart, ArchiveRequest, StageOrder

FAN_OUT = 2
# A source is slow if it sends less than SLOW_BYTES while this node waits for it for SLOW_S in all.
SLOW_S = 10.0
SLOW_BYTES = 20 * 1024**2
# How long a source may send empty parts, because it waits for its own source. It passes a slow source by much sooner.
STARVED_S = 120.0
READ_BYTES = 1024**2
READ_AHEAD_BYTES = 16 * 1024**2
# Until boot's order reaches this node, an agent that asks for the archive gets an empty part this often.
NO_ORDER_YET_S = 0.5


def sources(tree: Sequence[str], node: str) -> list[str]:
    """Return the nodes from which `node` can take the archive, in the order to try: its parent, then on to the root.

    Parameters
    ----------
    tree : sequence of str
        The nodes, the root first, each level after the one above it.
    node : str
        One of them.
    """
    position = tree.index(node)
    found = []
    while position:
        position = (position - 1) // FAN_OUT
        found.append(tree[position])
    return found


class Pace:
    """Watches how fast a source sends."""

    def __init__(self) -> None:
        self._waited_s = self._starved_s = 0.0
        self._received = 0

    def note(self, waited_s: float, size: int) -> None:
        """Note that the next part arrived after `waited_s` seconds, with `size` bytes; 0: the source has no more yet.

        Raises
        ------
        ConnectionError
            The source is too slow.
        """
        if not size:
            self._starved_s += waited_s
            self._waited_s, self._received = 0.0, 0
            if self._starved_s > STARVED_S:
                raise ConnectionError(f"it has itself got nothing for {STARVED_S:g} s")
            return
        self._starved_s = 0.0
        self._waited_s += waited_s
        self._received += size
        if self._waited_s >= SLOW_S:
            if self._received < SLOW_BYTES:
                raise ConnectionError(
                    f"too slow: {self._received / 1e6:.1f} MB in {self._waited_s:.0f} s of waiting"
                )
            self._waited_s, self._received = 0.0, 0


def start_filling(
    copy: ArchiveCopy,
    order: StageOrder,
    node: str,
    peers: Mapping[str, Sequence[str | int]],
    context: ssl.SSLContext,
) -> None:
    """Start a thread that fills this node's copy of the archive, from one source after the other until it is whole.

    `copy.is_whole` and `copy.failure` have the result. There is no deadline for the file: a shared file system that hangs
    may come back, and boot limits the time for staging.

    Parameters
    ----------
    copy : ArchiveCopy
        The copy.
    order : StageOrder
        Boot's order, with the tree.
    node : str
        This node.
    peers : mapping of str to sequence
        Host and port of each node's agent.
    context : SSLContext
        From `channel.client_context`.
    """
    addresses = [(source, peers.get(source)) for source in sources(order.tree, node)]
    threading.Thread(target=_fill, args=(copy, order, addresses, context), daemon=True).start()


def _fill(
    copy: ArchiveCopy,
    order: StageOrder,
    addresses: Sequence[tuple[str, Sequence[str | int] | None]],
    context: ssl.SSLContext,
) -> None:
    failure: str | None = None
    try:
        for source, address in addresses:
            try:
                if address is None:
                    raise ConnectionError("its address is not known")
                _from_peer(copy, str(address[0]), int(address[1]), context)
                break
            except OSError as error:
                copy.passed_by.append(f"{source}: {error}")
                copy.forget_unchecked()
        else:
            _from_file(copy, order)
    except DamagedError as error:
        note_damage(Path(order.archive))
        failure = (
            f"{order.archive} is damaged: {error}. Submit the job again: the environment is then packed anew"
        )
    except (OSError, CopyError) as error:
        failure = str(error)
    except Exception as error:
        failure = unexpected(error)
    copy.end(failure)


def _from_peer(copy: ArchiveCopy, host: str, port: int, context: ssl.SSLContext) -> None:
    """Take the rest of the archive from another agent.

    Raises
    ------
    OSError
        The agent is gone, silent or too slow, or sent damaged bytes.
    CopyError
        This node cannot keep a copy.
    """
    connection = BlockingConnection(host, port, context)
    try:
        connection.send(ArchiveRequest(copy.number, copy.size))
        pace = Pace()
        while not copy.is_whole:
            began = time.monotonic()
            message, data = connection.receive(SLOW_S)
            if not isinstance(message, ArchivePart):
                raise ConnectionError(f"{type(message).__name__} came instead of a part of the archive")
            pace.note(time.monotonic() - began, len(data))
            if data:
                copy.take(data)
    finally:
        connection.close()


def _from_file(copy: ArchiveCopy, order: StageOrder) -> None:
    """Take the rest of the archive from its file.

    Raises
    ------
    OSError
        The file cannot be read, or is damaged.
    CopyError
        This node cannot keep a copy.
    """
    file = os.open(order.archive, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not copy.size:
            index = bytearray(_checked_size(os.fstat(file).st_size - order.index_start))
            _read(file, order.index_start, memoryview(index))
            copy.take(arrival.head(index) + index)
        buffer = memoryview(bytearray(READ_BYTES))
        start, at = copy.frames_start, copy.size
        while at < start + order.index_start:
            size = copy.part_end(at, min(at + READ_BYTES, start + order.index_start)) - at
            os.posix_fadvise(file, at - start + size, READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
            _read(file, at - start, buffer[:size])
            copy.take(buffer[:size])
            at += size
    finally:
        os.close(file)
    if not copy.is_whole:
        raise DamagedError("it ends before its last frame")


def _checked_size(size: int) -> int:
    """Return the index's size in bytes; raise DamagedError if no index has that size."""
    if not 0 < size <= arrival.INDEX_MAX_BYTES:
        raise DamagedError("its size does not fit its index")
    return size


def _read(file: int, offset: int, view: memoryview) -> None:
    """Fill `view`; raise DamagedError if the file is too short."""
    while view:
        count = os.preadv(file, [view], offset)
        if not count:
            raise DamagedError("it was cut short")
        view, offset = view[count:], offset + count


async def answer(
    connection: Connection, request: ArchiveRequest, copy: Callable[[], ArchiveCopy | None]
) -> None:
    """Answer another agent's request for the archive. If boot's order has not reached this node yet, wait for it.

    Raises
    ------
    OSError
        The connection is lost.
    """
    while not (own := copy()) or own.number != request.number:
        await asyncio.sleep(NO_ORDER_YET_S)
        await send_in_time(connection, b"")
    await own.serve(connection, request)
