"""Boot's end of the agents' channel, alone: who is taken, what reaches whom, and what is noted."""

import asyncio
import contextlib
import gc
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from channelends import descriptors, until
from waiting import wait_until

from mpiboot.boot import channel as boot_channel
from mpiboot.boot.certificates import make_job_secrets
from mpiboot.boot.channel import Change, Channel, WaitingOutput
from mpiboot.common.version import VERSION
from mpiboot.protocol import channel
from mpiboot.protocol.channel import client_context, dial
from mpiboot.protocol.channel_messages import (
    ChannelAddress,
    Close,
    Ended,
    Failure,
    Heartbeat,
    Hello,
    NodeReport,
    Orders,
    Output,
    Peers,
    Question,
    Refused,
    StageOrder,
    StageReport,
)
from mpiboot.protocol.job_directory import JobDirectory, write_atomic
from mpiboot.protocol.messages import to_dict

CROWD = Path(__file__).resolve().parents[2] / "support" / "agentcrowd.py"
ORDERS = Orders(0, "n1", 2, "/tmp", "slurm-c-7", 1, None, None, None)
PEERS = Peers({"n1": ["10.0.0.1", 1]})
STAGE = StageOrder(1, "/archive", "direct")
REPORT = NodeReport(0, {}, 2**30, 1, False, False, 0)
STAGED = StageReport(1, {"start": 1.0})


@pytest.fixture
def directory(tmp_path):
    directory = JobDirectory.create(tmp_path / "home", "slurm-c-7")
    make_job_secrets(directory.path, valid_for_s=600)
    directory.ranks_log.touch()
    return directory


@pytest.fixture
def boot_of(directory):
    """A channel for nodes by their names; at the end nothing of it may be open."""
    gc.collect()
    before, threads, opened = descriptors(), threading.active_count(), []

    def make(*nodes):
        opened.append(Channel(nodes, "127.0.0.1", directory, ORDERS))
        return opened[-1]

    yield make
    for boot in opened:
        boot.close()
    gc.collect()
    assert (descriptors(), threading.active_count()) == (before, threads)


class Agent:
    """The other end of a connection to boot."""

    def __init__(self, connection):
        self.connection = connection

    @classmethod
    @contextlib.asynccontextmanager
    async def dialled(cls, boot, directory, node="n1", version=VERSION):
        connection = await dial("127.0.0.1", boot.port, client_context(directory.tls))
        try:
            await connection.send(Hello(version, node, f"host-{node}", 1))
            yield cls(connection)
        finally:
            connection.abort()
            await asyncio.sleep(0)

    async def receive(self, count=1):
        """The next messages besides heartbeats."""
        received = []
        while len(received) < count:
            message, _ = await self.connection.receive(10.0)
            if message != Heartbeat():
                received.append(message)
        return received

    async def is_closed(self):
        with contextlib.suppress(OSError):
            while True:
                await self.connection.receive(10.0)
        return True


def changes(boot, count):
    """The first changes; waits until there are so many."""
    wait_until(lambda: len(boot.changes) >= count, f"{count} changes", 20.0, lambda: boot.changes)
    return list(boot.changes)


# Who is taken.


def test_an_agent_gets_its_orders_and_its_answer_is_there(boot_of, directory):
    boot = boot_of("n1", "n2")

    async def work():
        async with Agent.dialled(boot, directory) as agent:
            assert await agent.receive() == [ORDERS]
            await agent.connection.send(REPORT)
            assert await asyncio.to_thread(boot.wait, lambda: 0 in boot.nodes["n1"].answers, 10.0)

    asyncio.run(work())
    assert boot.nodes["n1"].answers == {0: REPORT}
    assert boot.nodes["n2"].answers == {} and boot.nodes["n2"].lost_at is None
    assert not boot.wait(lambda: 0 in boot.nodes["n2"].answers, 0.05)


def test_an_agent_of_another_version_is_refused_in_words(boot_of, directory):
    boot = boot_of("n1")

    async def work():
        async with Agent.dialled(boot, directory, version="0.1") as agent:
            (refused,) = await agent.receive()
            assert await agent.is_closed()
            return refused

    reason = (
        f"the agent on n1 (host-n1) runs mpiboot 0.1, boot runs {VERSION}; "
        "submit the job again after an update of the environment"
    )
    assert asyncio.run(work()) == Refused(reason)
    assert changes(boot, 1) == [Change("lost-agent", "n1", reason)]
    assert boot.nodes["n1"].ended == reason


def test_a_node_that_is_not_of_the_job_is_refused(boot_of, directory):
    boot = boot_of("n1", "n2")

    async def work():
        async with Agent.dialled(boot, directory, "n3") as agent:
            refused = await agent.receive()
            assert await agent.is_closed()
            return refused

    assert asyncio.run(work()) == [Refused("n3 (host-n3) is not one of the job's 2 nodes, such as n1, n2")]
    assert list(boot.changes) == []


@pytest.mark.parametrize("first", [Question(), Output(), REPORT])
def test_who_does_not_begin_with_hello_is_not_served(boot_of, directory, first):
    boot = boot_of("n1")

    async def work():
        connection = await dial("127.0.0.1", boot.port, client_context(directory.tls))
        await connection.send(first)
        assert await Agent(connection).is_closed()
        await connection.end()

    asyncio.run(work())
    assert boot.nodes["n1"].answers == {} and list(boot.changes) == []


def test_who_says_nothing_is_not_held(boot_of, directory, monkeypatch):
    monkeypatch.setattr(boot_channel, "HANDSHAKE_TIMEOUT_S", 0.2)
    boot = boot_of("n1")

    async def work():
        connection = await dial("127.0.0.1", boot.port, client_context(directory.tls))
        assert await Agent(connection).is_closed()
        await connection.end()

    asyncio.run(work())


def test_an_agent_that_dials_again_replaces_its_first_connection(boot_of, directory):
    boot = boot_of("n1")

    async def work():
        async with Agent.dialled(boot, directory) as first:
            await first.receive()
            async with Agent.dialled(boot, directory) as second:
                assert await second.receive() == [ORDERS]
                assert await asyncio.wait_for(first.is_closed(), 5.0)
                await second.connection.send(REPORT)
                assert await asyncio.to_thread(boot.wait, lambda: 0 in boot.nodes["n1"].answers, 10.0)
                assert list(boot.changes) == [Change("agent-back", "n1", "it has dialled again")]

    asyncio.run(work())


# Silence, and the end of agents.


def test_an_agent_that_is_lost_and_comes_back(boot_of, directory):
    boot = boot_of("n1")

    async def work():
        for _ in range(2):
            async with Agent.dialled(boot, directory) as agent:
                await agent.receive()
            await until(lambda: boot.nodes["n1"].connection is None, "loss")

    asyncio.run(work())
    assert changes(boot, 3) == [
        Change("agent-silent", "n1", "the connection was closed"),
        Change("agent-back", "n1", "after 0 s"),
        Change("agent-silent", "n1", "the connection was closed"),
    ]


def test_an_agent_without_heartbeats_is_silent(boot_of, directory, monkeypatch):
    monkeypatch.setattr(channel, "CONNECTION_SILENCE_S", 0.3)
    boot = boot_of("n1")

    async def work():
        async with Agent.dialled(boot, directory) as agent:
            await agent.receive()
            for _ in range(6):
                await asyncio.sleep(0.1)
                await agent.connection.send(Heartbeat())
            assert list(boot.changes) == []
            assert await agent.is_closed()

    asyncio.run(work())
    assert changes(boot, 1) == [Change("agent-silent", "n1", "nothing was heard for 0.3 s")]


def test_an_agent_that_stays_away_is_lost(boot_of, directory, monkeypatch):
    monkeypatch.setattr(boot_channel, "SILENCE_S", 0.1)
    boot = boot_of("n1", "n2")

    async def lose():
        async with Agent.dialled(boot, directory) as agent:
            await agent.receive()

    asyncio.run(lose())
    reason = "nothing was heard of its agent for 0.1 s"
    assert changes(boot, 2) == [
        Change("agent-silent", "n1", "the connection was closed"),
        Change("lost-agent", "n1", reason),
    ]
    assert boot.wait(lambda: bool(boot.nodes["n1"].ended), 10.0)
    assert boot.nodes["n2"].ended is None  # it never dialled

    async def come_back():
        async with Agent.dialled(boot, directory) as agent:
            assert await agent.receive() == [ORDERS]
            assert boot.nodes["n1"].ended is None

    asyncio.run(come_back())
    assert [change.event for change in changes(boot, 3)[2:3]] == ["agent-back"]


def test_an_agent_that_ends_says_why(boot_of, directory):
    boot = boot_of("n1")

    async def work():
        async with Agent.dialled(boot, directory) as agent:
            await agent.receive()
            await agent.connection.send(Ended("it was told to"))
            assert await agent.is_closed()

    asyncio.run(work())
    assert changes(boot, 1) == [Change("lost-agent", "n1", "it was told to")]
    assert boot.nodes["n1"].lost_at is None


def test_what_happens_once_the_job_ends_is_no_news(boot_of, directory):
    boot = boot_of("n1", "n2")

    async def work():
        async with Agent.dialled(boot, directory) as agent, Agent.dialled(boot, directory, "n2") as other:
            assert await agent.receive() == await other.receive() == [ORDERS]
            boot.close_agents("the end")
            assert await agent.receive() == [Close("the end")]
            await agent.connection.send(Ended("the end"))
            assert await agent.is_closed()
            other.connection.abort()
            await until(lambda: bool(boot.nodes["n2"].lost_at), "loss")

    asyncio.run(work())
    assert (list(boot.changes), boot.nodes["n1"].ended) == ([], "the end")


def test_boot_sends_heartbeats(boot_of, directory, monkeypatch):
    monkeypatch.setattr(boot_channel, "HEARTBEAT_S", 0.05)
    boot = boot_of("n1")

    async def work():
        async with Agent.dialled(boot, directory) as agent:
            messages = [(await agent.connection.receive(10.0))[0] for _ in range(4)]
            assert messages == [ORDERS, *[Heartbeat()] * 3]

    asyncio.run(work())
    signs = set()

    def sign_has_changed():
        with contextlib.suppress(OSError):
            signs.add(directory.heartbeat.read_bytes())
        return len(signs - {b""}) > 1

    wait_until(sign_has_changed, "second sign of life", 10.0)


# Orders and answers.


def test_an_answer_is_taken_once(boot_of, directory):
    boot = boot_of("n1")

    async def work():
        async with Agent.dialled(boot, directory) as agent:
            for answer in (Failure(0, "first"), REPORT, STAGED):
                await agent.connection.send(answer)
            assert await asyncio.to_thread(boot.wait, lambda: 1 in boot.nodes["n1"].answers, 10.0)

    asyncio.run(work())
    assert boot.nodes["n1"].answers == {0: Failure(0, "first"), 1: STAGED}


def test_orders_reach_an_agent_that_was_away_and_not_twice_once_it_has_answered(boot_of, directory):
    boot = boot_of("n1")

    async def work():
        async with Agent.dialled(boot, directory) as agent:
            assert await agent.receive() == [ORDERS]
            await agent.connection.send(REPORT)
        await until(lambda: boot.nodes["n1"].connection is None, "loss")
        boot.post(PEERS)
        boot.post(STAGE)
        async with Agent.dialled(boot, directory) as agent:
            # Orders come with every connection: they show that it is boot who answers.
            assert await agent.receive(3) == [ORDERS, PEERS, STAGE]
            await agent.connection.send(STAGED)
            assert await asyncio.to_thread(boot.wait, lambda: 1 in boot.nodes["n1"].answers, 10.0)
        boot.close_agents("the end")
        async with Agent.dialled(boot, directory) as agent:
            assert await agent.receive(3) == [ORDERS, PEERS, Close("the end")]

    asyncio.run(work())


def test_orders_never_overtake_each_other(boot_of, directory):
    """Not even on a connection that is full when an order is posted."""
    boot = boot_of("n1")
    orders = [Peers({"n": ["x" * 900_000, k]}) for k in range(16)]
    later = [STAGE, Peers({})]

    async def work():
        for order in orders:
            boot.post(order)
        async with Agent.dialled(boot, directory) as agent:
            await until(lambda: boot.nodes["n1"].connection is not None, "connection")
            for order in later:
                boot.post(order)
            await asyncio.sleep(0.1)  # boot sends as much as the connection takes
            assert await agent.receive(1 + len(orders) + len(later)) == [ORDERS, *orders, *later]

    asyncio.run(work())


# Output.


def test_output_comes_into_the_file_in_its_order(boot_of, directory):
    boot = boot_of("n1")
    lines = [f"{k}\n".encode() for k in range(500)]

    async def work():
        async with Agent.dialled(boot, directory) as agent:
            for line in lines:
                agent.connection.post(Output(), line)
            await agent.connection.send(Ended("done"))
            assert await agent.is_closed()

    asyncio.run(work())
    boot.close()
    assert directory.ranks_log.read_bytes() == b"".join(lines)


def test_a_file_system_that_blocks_stops_neither_heartbeats_nor_the_end(boot_of, directory, monkeypatch):
    monkeypatch.setattr(boot_channel, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(boot_channel, "FLUSH_S", 0.3)
    monkeypatch.setattr(boot_channel, "OUTPUT_BYTES_MAX", 1000)
    directory.ranks_log.unlink()
    os.mkfifo(directory.ranks_log)  # opening it blocks until somebody reads
    boot = boot_of("n1")

    async def work():
        async with Agent.dialled(boot, directory) as agent:
            await agent.receive()
            agent.connection.post(Output(), b"first\n")
            await agent.connection.send(STAGED)
            assert await asyncio.to_thread(boot.wait, lambda: 1 in boot.nodes["n1"].answers, 10.0)
            await until(lambda: not boot._output._pieces, "piece that is being written")
            for _ in range(50):
                agent.connection.post(Output(), b"x" * 99 + b"\n")
            await agent.connection.send(REPORT)
            assert await asyncio.to_thread(boot.wait, lambda: 0 in boot.nodes["n1"].answers, 10.0)
            for _ in range(10):
                assert (await agent.connection.receive(10.0))[0] == Heartbeat()

    asyncio.run(work())
    began = time.monotonic()
    boot.close()
    assert time.monotonic() - began < 5.0
    log = os.open(directory.ranks_log, os.O_RDWR)  # a reader without an end of file
    boot._files.join(10.0)
    output = os.read(log, 2**16)
    os.close(log)
    whole = b"first\n" + (b"x" * 99 + b"\n") * 10
    assert output == whole + b"\nmpiboot: 4000 bytes of output are lost: the file system was too slow\n"


def test_output_is_taken_all_at_once():
    output = WaitingOutput()
    assert output.take(0.0) == b""
    output.put("n1", b"a")
    output.put("n1", b"b")
    assert output.take(0.0) == b"ab"
    output.put("n1", b"c")
    output.end()
    assert (output.take(10.0), output.take(10.0)) == (b"c", None)


def test_last_words_are_in_the_file_once_the_output_has_settled():
    output = WaitingOutput()
    may_write, written = threading.Event(), []

    def write():
        while (piece := output.take(10.0)) is not None:
            may_write.wait(10.0)
            written.append(piece)

    writer = threading.Thread(target=write)
    writer.start()
    output.put("n1", b"first ")
    late = threading.Timer(0.1, lambda: (output.put("n1", b"last"), may_write.set()))
    late.start()
    output.settle(0.5, 10.0)
    assert b"".join(written) == b"first last"
    may_write.clear()
    output.put("n1", b"too late")
    began = time.monotonic()
    output.settle(0.1, 0.3)
    assert time.monotonic() - began < 5.0
    may_write.set()
    output.end()
    writer.join(10.0)


def test_an_output_file_that_cannot_be_written_loses_output_only(boot_of, directory):
    directory.ranks_log.unlink()
    directory.ranks_log.mkdir()
    boot = boot_of("n1")

    async def work():
        async with Agent.dialled(boot, directory) as agent:
            agent.connection.post(Output(), b"lost")
            await agent.connection.send(REPORT)
            assert await asyncio.to_thread(boot.wait, lambda: 0 in boot.nodes["n1"].answers, 10.0)

    asyncio.run(work())


# The end of the channel.


def test_it_closes_at_any_time(boot_of, directory):
    boot_of("n1").close()
    boot = boot_of("n1")

    async def work():
        async with Agent.dialled(boot, directory) as agent:
            await agent.receive()
            await asyncio.to_thread(boot.close)
            assert await agent.is_closed()

    asyncio.run(work())
    boot.close()


# Many.


def test_two_hundred_agents_are_connected_ordered_and_answered(boot_of, directory):
    """All of them real, in a process that plays their nodes; boot begins with few descriptors."""
    nodes = [f"node-{k}" for k in range(200)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, limits[1]))
    try:
        boot = boot_of(*nodes)
        address = ChannelAddress(VERSION, ["127.0.0.1"], boot.port, None, "", os.getpid(), "")
        write_atomic(directory.channel, to_dict(address))
        crowd = subprocess.Popen([sys.executable, str(CROWD), str(directory.path), "0", str(len(nodes))])
        try:
            states = boot.nodes.values()
            assert boot.wait(lambda: all(0 in state.answers for state in states), 60.0)
            boot.post(Peers({node: ["10.0.0.1", 1] for node in nodes}))
            boot.post(STAGE)
            assert boot.wait(lambda: all(1 in state.answers for state in states), 60.0)
            assert {len(state.answers[0].interfaces) for state in states} == {14}
            assert all(isinstance(state.answers[1], StageReport) for state in states)
            boot.close_agents("done")
            assert boot.wait(lambda: all(state.ended for state in states), 60.0)
            assert {state.ended for state in states} == {"done"}
            assert crowd.wait(60.0) == 0
        finally:
            crowd.kill()
            crowd.wait()
        boot.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert list(boot.changes) == []
