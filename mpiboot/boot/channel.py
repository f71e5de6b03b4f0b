"""Boot's end of the agents' channel: listens, keeps each node's answers, and writes the ranks' output to the job's log.

It runs in threads of its own, so that heartbeats continue while a shared file system blocks boot. Only the event loop's
thread changes a `NodeState`; boot's own thread reads it.

Only `boot.agents` imports this module. It imports `protocol` and `common`.
"""

import asyncio
import collections
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mpiboot.common.version import VERSION
from mpiboot.protocol.channel import (
    HANDSHAKE_TIMEOUT_S,
    HEARTBEAT_S,
    SILENCE_S,
    Connection,
    encode,
    server_context,
)
from mpiboot.protocol.channel_messages import (
    Close,
    Ended,
    Failure,
    Heartbeat,
    Hello,
    NodeReport,
    Orders,
    Output,
    Refused,
    StageReport,
)
from mpiboot.protocol.job_directory import JobDirectory
from mpiboot.protocol.listener import Listener

# How much of the ranks' output may wait in memory for a slow file system: of all nodes, and of one.
OUTPUT_BYTES_MAX = 64 * 1024**2
OUTPUT_OF_NODE_BYTES_MAX = 8 * 1024**2
FLUSH_S = 2.0
# What a process has printed last arrives within this time after boot has noticed its end.
LAST_WORDS_S = 0.3
# A waiting thread is woken at most this often, because it looks at all nodes each time.
WAKE_S = 0.02

# How many nodes a message names.
NODES_SHOWN = 10

Answer = NodeReport | StageReport | Failure


class Change(NamedTuple):
    """Something that happened to an agent, for the job's events.

    Attributes
    ----------
    event : str
        `agent-silent`, `agent-back` or `lost-agent`.
    node : str
        The agent's node.
    detail : str
        The reason.
    """

    event: str
    node: str
    detail: str


@dataclass
class NodeState:
    """What boot knows of one node's agent.

    Attributes
    ----------
    connection : Connection or None
        The connection to the agent; None while there is none.
    answers : dict of int to Answer
        The agent's answers, by the number of the order.
    lost_at : float or None, seconds
        When the connection was lost (time.monotonic); None if the agent is connected, or never was.
    ended : str or None
        Why the agent has ended or counts as lost; None otherwise.
    """

    connection: Connection | None = None
    answers: dict[int, Answer] = field(default_factory=dict)
    lost_at: float | None = None
    ended: str | None = None


class Channel:
    """Boot's end of the channel.

    Parameters
    ----------
    nodes : sequence of str
        Names of all nodes.
    host : str
        The address to listen on; "" is all of the host's.
    directory : JobDirectory
        The job's directory, with its TLS files.
    orders : Orders
        The orders that every agent gets when it has dialled.
    ports : sequence of int, default (0,)
        The ports to try; 0: the kernel chooses one.

    Attributes
    ----------
    nodes : dict of str to NodeState
        The agents, by the name of the node.
    port : int
        The port.
    changes : deque of Change
        What has happened to agents, oldest first; the reader removes it.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        host: str,
        directory: JobDirectory,
        orders: Orders,
        ports: Sequence[int] = (0,),
    ) -> None:
        self.nodes = {node: NodeState() for node in nodes}
        self.changes: collections.deque[Change] = collections.deque()
        # All orders and their bytes. An agent that dials gets them in this order.
        self._orders: list[tuple[Any, bytes]] = [(orders, encode(orders))]
        self._closing: Close | None = None
        self._is_open = True
        self._changed = threading.Condition()
        self._wake_is_due = False
        self._output = WaitingOutput()
        self._listener = Listener(host, server_context(directory.tls), self._serve, len(nodes), ports)
        self._loop = asyncio.new_event_loop()
        self.port = self._listener.port
        self._main = self._loop.create_task(self._serve_all())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._files = threading.Thread(target=self._write_files, args=(directory,), daemon=True)
        self._files.start()

    # In boot's thread.

    def post(self, order: Any) -> None:
        """Send an order to all connected agents, and to every agent that dials later."""
        self._loop.call_soon_threadsafe(self._post, order)

    def wait(self, is_done: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `is_done()`, which is called after every change of a node; return its last result."""
        with self._changed:
            return self._changed.wait_for(is_done, timeout_s)

    def note_unreached(self, node: str, reason: str) -> None:
        """Note that an agent has ended without a connection to boot, as it has written to the job directory."""
        state = self.nodes.get(node)
        if state and state.connection is None and state.ended is None:
            self._loop.call_soon_threadsafe(self._note_end, node, reason)

    def settle_output(self) -> None:
        """Wait until the log has the last output of ranks that have ended, for at most FLUSH_S seconds."""
        self._output.settle(LAST_WORDS_S, FLUSH_S)

    def close_agents(self, reason: str) -> None:
        """Tell all agents to clean their nodes and end."""
        self._closing = Close(reason)
        self.post(self._closing)

    def close(self) -> None:
        """Close all connections, and write the output that has arrived to the log."""
        if not self._is_open:
            return
        self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join(FLUSH_S)
        self._is_open = False
        self._output.end()
        self._files.join(FLUSH_S)

    # In the thread of the event loop.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._main)
        self._listener.close()  # if it was cancelled before it began
        self._loop.close()

    async def _serve_all(self) -> None:
        watch = asyncio.create_task(self._watch())
        try:
            await self._listener.run()
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        """Note an agent as lost if it has not dialled again within SILENCE_S."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(1.0)
            # Time in which the job was suspended does not count.
            paused_s = max(0.0, time.monotonic() - began - HEARTBEAT_S)
            for node, state in self.nodes.items():
                if state.lost_at:
                    state.lost_at += paused_s
                if state.lost_at and not state.ended and time.monotonic() - state.lost_at > SILENCE_S:
                    self._note_end(node, f"nothing was heard of its agent for {SILENCE_S:g} s")

    async def _serve(self, connection: Connection) -> None:
        hello, _ = await connection.receive(HANDSHAKE_TIMEOUT_S)
        if not isinstance(hello, Hello):
            return
        state = self.nodes.get(hello.node)
        if refusal := self._refusal(hello):
            await connection.send(Refused(refusal))
            if state and state.connection is None:
                self._note_end(hello.node, refusal)
            return
        assert state
        if state.connection:  # the agent has noticed the loss of it before boot
            state.connection.abort()
            self._note("agent-back", hello.node, "it has dialled again")
        elif state.lost_at:
            self._note("agent-back", hello.node, f"after {time.monotonic() - state.lost_at:.0f} s")
        state.connection, state.lost_at, state.ended = connection, None, None
        heartbeats = asyncio.create_task(self._send_heartbeats(connection))
        why = "the connection was closed"
        try:
            # Write all orders without waiting in between: an order that is posted meanwhile must not overtake them.
            for order, frame in self._orders:
                if getattr(order, "number", None) not in state.answers or isinstance(order, Orders):
                    connection.write(frame)
            await connection.drain()
            while not state.ended:
                message, payload = await connection.receive()
                self._take(hello.node, state, message, payload)
        except OSError as error:
            why = str(error)
        finally:
            heartbeats.cancel()
            if state.connection is connection:
                state.connection = None
                if not state.ended:
                    state.lost_at = time.monotonic()
                    self._note("agent-silent", hello.node, why)

    def _refusal(self, hello: Hello) -> str | None:
        if hello.version != VERSION:
            return (
                f"the agent on {hello.node} ({hello.host}) runs mpiboot {hello.version}, boot runs {VERSION}; "
                "submit the job again after an update of the environment"
            )
        if hello.node not in self.nodes:
            some = ", ".join(list(self.nodes)[:NODES_SHOWN])
            return (
                f"{hello.node} ({hello.host}) is not one of the job's {len(self.nodes)} nodes, such as {some}"
            )
        return None

    def _take(self, node: str, state: NodeState, message: Any, payload: bytes) -> None:
        if isinstance(message, Answer):
            state.answers.setdefault(message.number, message)
            self._notify()
        elif isinstance(message, Output):
            self._output.put(node, payload)
        elif isinstance(message, Ended):
            self._note_end(node, message.reason)

    async def _send_heartbeats(self, connection: Connection) -> None:
        frame = encode(Heartbeat())
        with contextlib.suppress(OSError):
            while True:
                await asyncio.sleep(HEARTBEAT_S)
                connection.write(frame)
                await connection.drain()

    def _post(self, order: Any) -> None:
        frame = encode(order)
        self._orders.append((order, frame))
        for state in self.nodes.values():
            if state.connection:
                state.connection.write(frame)

    def _note_end(self, node: str, reason: str) -> None:
        self.nodes[node].ended = reason
        self._note("lost-agent", node, reason)

    def _note(self, event: str, node: str, detail: str) -> None:
        if not self._closing:
            self.changes.append(Change(event, node, detail))
        self._notify()

    def _notify(self) -> None:
        if not self._wake_is_due:
            self._wake_is_due = True
            self._loop.call_later(WAKE_S, self._wake)

    def _wake(self) -> None:
        self._wake_is_due = False
        with self._changed:
            self._changed.notify_all()

    # In the thread that writes files.

    def _write_files(self, directory: JobDirectory) -> None:
        """Write the ranks' output, and every HEARTBEAT_S a new number: boot's sign of life on the shared file system."""
        number, due = 0, 0.0
        while True:
            with contextlib.suppress(OSError):
                if time.monotonic() >= due and self._is_open:
                    number, due = number + 1, time.monotonic() + HEARTBEAT_S
                    directory.heartbeat.write_text(f"{number}\n")
            output = self._output.take(max(0.0, due - time.monotonic()))
            if output is None:
                return
            if output:
                with contextlib.suppress(OSError), directory.ranks_log.open("ab") as log:
                    log.write(output)


class WaitingOutput:
    """The ranks' output that is not yet in the log, so that a file system that blocks does not block the ranks."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pieces: list[bytes] = []
        self._sizes: collections.Counter[str] = collections.Counter()
        self._lost = 0
        self._came_at = 0.0
        self._is_being_written = False
        self._has_ended = False

    def put(self, node: str, piece: bytes) -> None:
        """Add output of a node; drop and count it if too much of this node, or of all nodes, waits already."""
        with self._changed:
            self._came_at = time.monotonic()
            if (
                self._sizes[node] + len(piece) > OUTPUT_OF_NODE_BYTES_MAX
                or self._sizes.total() + len(piece) > OUTPUT_BYTES_MAX
            ):
                self._lost += len(piece)
                return
            self._pieces.append(piece)
            self._sizes[node] += len(piece)
            self._changed.notify_all()

    def end(self) -> None:
        """Add no more: `take` returns None once it has returned everything."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def take(self, timeout_s: float) -> bytes | None:
        """Wait for output, and return all of it: b"" if none came within `timeout_s`, None if none will come."""
        with self._changed:
            self._is_being_written = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._pieces or self._has_ended, timeout_s)
            if not self._pieces:
                return None if self._has_ended else b""
            output = b"".join(self._pieces)
            if self._lost:
                output += f"\nmpiboot: {self._lost} bytes of output are lost: the file system was too slow\n".encode()
            self._pieces.clear()
            self._sizes.clear()
            self._lost = 0
            self._is_being_written = True
            return output

    def settle(self, quiet_s: float, timeout_s: float) -> None:
        """Wait until no output has come for `quiet_s` seconds and all is written, for at most `timeout_s` seconds."""
        began = now = time.monotonic()
        with self._changed:
            while (left_s := began + timeout_s - now) > 0:
                quiet_in_s = max(began, self._came_at) + quiet_s - now
                if quiet_in_s <= 0 and not self._pieces and not self._is_being_written:
                    return
                self._changed.wait(min(left_s, quiet_in_s) if quiet_in_s > 0 else left_s)
                now = time.monotonic()
