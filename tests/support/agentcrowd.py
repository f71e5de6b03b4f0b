"""Many agents in one process, to load boot's channel. They run the real agent's code, but prepare and stage nothing.

    python agentcrowd.py JOB_DIRECTORY FIRST COUNT

plays the nodes `node-FIRST` and the next ones, COUNT in all, until boot tells them to end. SIGUSR2 cuts all connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import signal
import sys
from pathlib import Path

from mpiboot.agent import agent
from mpiboot.common.interfaces import Interface
from mpiboot.protocol import channel
from mpiboot.protocol.channel_messages import (
    ChannelAddress,
    Ended,
    NodeReport,
    Orders,
    StageOrder,
    StageReport,
)
from mpiboot.protocol.job_directory import JobDirectory

INTERFACES = 14
FLUSH_S = 10.0


class LightAgent(agent.Agent):
    """An agent without a node: it dials, answers and ends as the real one does."""

    def __init__(self, directory: JobDirectory, address: ChannelAddress, node: str) -> None:
        super().__init__(directory, address)
        self.node = node

    async def run(self) -> int:
        self.start(self.follow_boot())
        self.start(self.watch_silence())
        ending = await self.ending
        connection, self.connection = self.connection, None
        if connection:
            connection.post(Ended(ending.reason))
            await connection.end(FLUSH_S)
        self.output.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        return ending.status

    async def prepare(self, orders: Orders) -> NodeReport:
        interfaces = {
            f"ib{number}": Interface(
                address=f"10.{number}.0.1",
                network=f"10.{number}.0.0/24",
                kind=32,
                loopback=False,
                speed_mbits=200_000,
            )
            for number in range(INTERFACES)
        }
        return NodeReport(
            number=orders.number,
            interfaces=interfaces,
            memory_bytes=2**38,
            cpus=128,
            root_is_memory=True,
            has_stage=False,
            port=40_000,
        )

    async def stage(self, order: StageOrder) -> StageReport:
        stage: dict[str, str | int | float | bool | list[str]] = {
            "prefix": "/tmp/mpiboot-alice/0123456789abcdef",
            "size_bytes": 2**31,
            "files": 50_000,
            "start": 1.7e9,
            "end": 1.7e9 + 12.5,
            "staged": True,
        }
        return StageReport(order.number, stage)

    def cut(self) -> None:
        """Lose the connection, as if the network had dropped it."""
        if self.connection:
            self.connection.abort()


async def main() -> int:
    directory, first, count = JobDirectory(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    address = ChannelAddress.from_json(directory.channel.read_bytes())
    channel.client_context = functools.cache(channel.client_context)  # a real agent makes its own
    agents = [LightAgent(directory, address, f"node-{first + k}") for k in range(count)]
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, lambda: [one.cut() for one in agents])
    statuses = await asyncio.gather(*(one.run() for one in agents))
    for one in agents:
        if one.ending.result().reason != "done":
            print(f"{one.node} ended: {one.ending.result().reason}", file=sys.stderr)
    return max(statuses)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.exit(asyncio.run(main()))
