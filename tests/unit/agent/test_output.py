"""The ranks' output on its way through the agent: what is kept, what is dropped, and that nothing stays behind."""

import asyncio
import os

import pytest
from channelends import run, until

from mpiboot.agent import output as agent_output
from mpiboot.agent.output import RanksOutput

PIECE = b"x" * 2**15


class Boot:
    """A connection to a boot that takes output only when the test says so."""

    def __init__(self):
        self.sent = b""
        self.unsent_bytes = 0

    def post(self, _message, payload):
        self.sent += payload
        self.unsent_bytes += len(payload)

    async def drain(self):
        await asyncio.sleep(0)
        self.unsent_bytes = 0


@pytest.fixture
def with_output():
    def run_with(work):
        async def prepared():
            output = RanksOutput()
            try:
                await work(output, Boot())
            finally:
                left = output.close()
            return left

        return run(prepared())

    return run_with


def test_what_was_printed_during_a_cut_arrives_without_further_output(with_output):
    async def work(output, boot):
        lines = [f"line {k}\n".encode() for k in range(40)]
        for line in lines:
            os.write(output.writer, line)
            output.forward()
        output.connect(boot)
        assert boot.sent == b"".join(lines)

    with_output(work)


def test_the_end_of_a_burst_arrives_without_further_output(with_output):
    async def work(output, boot):
        output.connect(boot)
        n_pieces = 3 * agent_output.UNSENT_BYTES_MAX // len(PIECE)
        for _ in range(n_pieces):
            output.say(PIECE)
        output.say(b"last words")
        assert not boot.sent.endswith(b"last words")
        await boot.drain()
        await until(lambda: len(boot.sent) > agent_output.UNSENT_BYTES_MAX, "what boot can take now")
        await output.finish(10.0)
        assert boot.sent == PIECE * n_pieces + b"last words"

    with_output(work)


def test_the_end_waits_no_longer_than_it_may(with_output):
    async def work(output, boot):
        boot.unsent_bytes = agent_output.UNSENT_BYTES_MAX
        boot.drain = asyncio.Event().wait
        output.connect(boot)
        output.say(b"words")
        await output.finish(0.05)

    assert with_output(work) == b"words"


def test_what_is_dropped_is_the_oldest_and_is_counted(with_output, monkeypatch):
    monkeypatch.setattr(agent_output, "KEPT_BYTES_MAX", 10)

    async def work(output, boot):
        output.say(b"0123456789")
        output.say(b"abc")
        output.connect(boot)
        lost = b"\nmpiboot: 3 bytes of output are lost: boot could not accept them in time\n"
        assert boot.sent == lost + b"3456789abc"

    with_output(work)
