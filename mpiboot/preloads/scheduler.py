"""Preload of the scheduler: reports to boot, and closes the scheduler when boot asks, when boot dies, or when idle.

distributed imports this module by name (`protocol.rank_environment`); it imports distributed and the rooms that preloads
may import. `protocol.control` lists the messages.
"""

import asyncio
import contextlib
import logging
import os
import time
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.ioloop import PeriodicCallback

from mpiboot.common.faults import one_line
from mpiboot.distributed_internals import (
    has_work,
    hung_workers,
    scheduler_dashboard_port,
    user_clients,
    watch_for_hung_workers,
)
from mpiboot.preloads.nanny import WORKER_EXIT_TOPIC
from mpiboot.protocol.control import decode, encode
from mpiboot.protocol.node import BOOT_SOCKET_NAME, socket_address
from mpiboot.protocol.variables import CONTROL_FOLDER_VARIABLE, IDLE_TIMEOUT_VARIABLE

logger = logging.getLogger(__name__)

EVENT_TOPIC = "mpiboot"
PLUGIN_NAME = "mpiboot"
FLUSH_S = 0.1
HUNG_WORKER_CHECK_S = 5.0
IDLE_CHECK_MS = 1000
# How the stimulus ids of `Scheduler.retire_workers` begin.
RETIREMENT = "retire-workers"


class Reporter(SchedulerPlugin):  # type: ignore[misc]
    """Reports the scheduler's events to boot, and executes boot's commands.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        The scheduler.
    idle_timeout_s : float or None, seconds
        Close the scheduler after this long without task and client; None or 0: never.
    """

    name = PLUGIN_NAME

    def __init__(self, scheduler: Scheduler, idle_timeout_s: float | None) -> None:
        self.scheduler = scheduler
        self.idle_timeout_s = idle_timeout_s
        self.last_use = time.monotonic()
        self.close_reason = "client-shutdown"
        self.writer: asyncio.StreamWriter | None = None
        self.idle_check = PeriodicCallback(self.check_idle, IDLE_CHECK_MS)

    async def connect(self, folder: str) -> None:
        """Connect to boot, whose socket is in `folder`, and report where the scheduler listens."""
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        reader, self.writer = await asyncio.open_unix_connection(socket_address(handle, BOOT_SOCKET_NAME))
        os.close(handle)
        self.tell(
            "scheduler",
            id=self.scheduler.id,
            address=self.scheduler.address,
            dashboard_port=scheduler_dashboard_port(self.scheduler),
        )
        self.listening = asyncio.create_task(self.listen(reader))

    def tell(self, event: str, **details: Any) -> None:
        """Send an event to boot."""
        if self.writer and not self.writer.is_closing():
            self.writer.write(encode({"event": event, "time": time.time(), **details}))

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Execute boot's commands until boot has ended; then close the scheduler."""
        # If boot was killed before it had read everything, the kernel resets the connection instead of closing it.
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                command = decode(line)
                if command["command"] == "close":
                    await self.close_scheduler(command["reason"])
                elif command["command"] == "announce":
                    self.scheduler.log_event(EVENT_TOPIC, command["message"])
                elif command["command"] == "published":
                    self.last_use = time.monotonic()  # before, no client could connect
                    self.idle_check.start()
        # Without boot, no process records how the job ended, keeps its deadlines, or cleans up.
        await self.close_scheduler("boot-died")

    async def close_scheduler(self, reason: str) -> None:
        """Send the clients the reason, and close the scheduler."""
        self.close_reason = reason
        self.scheduler.log_event(EVENT_TOPIC, {"event": "closing", "reason": reason})
        await asyncio.sleep(
            FLUSH_S
        )  # closing aborts the clients' connections, and drops messages that are not sent yet
        await self.scheduler.close(reason=f"mpiboot: {reason}")

    def check_idle(self) -> None:
        """Close the scheduler if it has been idle for the idle timeout.

        A connected client counts as use: Dask's own idle timeout would end a cluster while its user is thinking.
        """
        if user_clients(self.scheduler) or has_work(self.scheduler):
            self.last_use = time.monotonic()
        elif self.idle_timeout_s and time.monotonic() - self.last_use > self.idle_timeout_s:
            self.idle_check.stop()
            self.closing = asyncio.create_task(self.close_scheduler("idle-timeout"))

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        state = scheduler.workers[worker]
        self.tell("worker", address=worker, name=str(state.name), ip=state.host, n=len(scheduler.workers))

    def remove_worker(
        self, scheduler: Scheduler, worker: str, *, stimulus_id: str = "", **details: Any
    ) -> None:
        if scheduler.status.name == "running":
            event = "retired-worker" if stimulus_id.startswith(RETIREMENT) else "lost-worker"
            self.tell(event, address=worker, n=len(scheduler.workers))

    def log_event(self, topic: str, message: Any) -> None:
        """Pass on to boot the nannies' reports of ended workers (preloads/nanny.py), and which workers hang."""
        if topic == WORKER_EXIT_TOPIC:
            self.tell("worker-exit", **message)
        addresses, silent_s = hung_workers(topic, message)
        for address in addresses:
            self.tell("hung-worker", address=address, silent_s=silent_s)

    def add_client(self, scheduler: Scheduler, client: str) -> None:
        self.tell("client", client=client)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        self.tell("lost-client", client=client)


async def dask_setup(scheduler: Scheduler) -> None:
    """Connect the scheduler to boot; distributed calls this as the scheduler starts, and may call it twice."""
    if PLUGIN_NAME in scheduler.plugins:
        return
    try:
        timeout = os.environ.get(IDLE_TIMEOUT_VARIABLE)
        reporter = Reporter(scheduler, float(timeout) if timeout else None)
        scheduler.add_plugin(reporter, name=PLUGIN_NAME)
        watch_for_hung_workers(scheduler, HUNG_WORKER_CHECK_S)
        await reporter.connect(os.environ[CONTROL_FOLDER_VARIABLE])
    except BaseException as error:
        # distributed only logs an error of a preload, and a scheduler that boot cannot see would run for ever.
        logger.critical("the scheduler could not connect to boot, and ends: %s", one_line(error))
        os._exit(1)


async def dask_teardown(scheduler: Scheduler) -> None:
    """Tell boot why the scheduler closes; distributed calls this when the scheduler closes."""
    reporter: Reporter = scheduler.plugins[PLUGIN_NAME]
    reporter.idle_check.stop()
    reporter.tell("closed", reason=reporter.close_reason)
    if reporter.writer:
        with contextlib.suppress(ConnectionError):  # boot has died
            await reporter.writer.drain()
