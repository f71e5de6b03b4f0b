"""Inside the scheduler: tells boot who comes and goes, and closes when boot says so, dies, or nobody needs it."""

import asyncio
import contextlib
import logging
import os
import time
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.ioloop import PeriodicCallback

from mpiboot.preloads.nanny import WORKER_EXIT_TOPIC
from mpiboot.protocol.control import decode, encode
from mpiboot.protocol.node import BOOT_SOCKET_NAME, socket_address
from mpiboot.protocol.variables import CONTROL_FOLDER_VARIABLE, IDLE_TIMEOUT_VARIABLE

logger = logging.getLogger(__name__)

EVENT_TOPIC = "mpiboot"
PLUGIN_NAME = "mpiboot"
FLUSH_S = 0.1
# Dask looks for workers that hang only as often as it gives them time: the last is found after twice that.
TTL_CHECK_S = 5.0


class Reporter(SchedulerPlugin):  # type: ignore[misc]
    """Boot's eyes and hands in the scheduler."""

    name = PLUGIN_NAME

    def __init__(self, scheduler: Scheduler, idle_timeout_s: float | None) -> None:
        self.scheduler = scheduler
        self.idle_timeout_s = idle_timeout_s
        self.last_client = time.monotonic()
        self.close_reason = "client-shutdown"
        self.writer: asyncio.StreamWriter | None = None
        self.callback = PeriodicCallback(self.check_idle, 1000)

    async def connect(self, folder: str) -> None:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        reader, self.writer = await asyncio.open_unix_connection(socket_address(handle, BOOT_SOCKET_NAME))
        os.close(handle)
        dashboard = self.scheduler.services.get("dashboard")
        self.tell(
            "scheduler",
            id=self.scheduler.id,
            address=self.scheduler.address,
            dashboard_port=dashboard.port if dashboard else None,
        )
        self.listening = asyncio.create_task(self.listen(reader))
        self.callback.start()

    def tell(self, event: str, **details: Any) -> None:
        if self.writer and not self.writer.is_closing():
            self.writer.write(encode({"event": event, "time": time.time(), **details}))

    async def listen(self, reader: asyncio.StreamReader) -> None:
        # A boot that was killed with words unread resets the connection instead of ending it.
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                command = decode(line)
                if command["command"] == "close":
                    await self.close_scheduler(command["reason"])
                elif command["command"] == "announce":
                    self.scheduler.log_event(EVENT_TOPIC, command["message"])
        # Boot is gone: nobody would record how this ended, renew a deadline or clean up.
        await self.close_scheduler("boot-died")

    async def close_scheduler(self, reason: str) -> None:
        self.close_reason = reason
        self.scheduler.log_event(EVENT_TOPIC, {"event": "closing", "reason": reason})
        await asyncio.sleep(FLUSH_S)  # a close aborts the clients' connections, with what is still to be sent
        await self.scheduler.close(reason=f"mpiboot: {reason}")

    def check_idle(self) -> None:
        """Dask's own idle timeout ends a cluster under a thinking user: a connected client counts as use here."""
        clients = [client for client in self.scheduler.clients if client != "fire-and-forget"]
        if clients or self.scheduler.check_idle() is None:
            self.last_client = time.monotonic()
        elif self.idle_timeout_s and time.monotonic() - self.last_client > self.idle_timeout_s:
            self.callback.stop()
            self.closing = asyncio.create_task(self.close_scheduler("idle-timeout"))

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        state = scheduler.workers[worker]
        self.tell("worker", address=worker, name=str(state.name), ip=state.host, n=len(scheduler.workers))

    def remove_worker(self, scheduler: Scheduler, worker: str, **details: Any) -> None:
        if scheduler.status.name == "running":
            self.tell("lost-worker", address=worker, n=len(scheduler.workers))

    def log_event(self, topic: str, message: Any) -> None:
        """How a worker's process ended: its nanny says so (preloads/nanny.py), and cannot reach boot itself."""
        if topic == WORKER_EXIT_TOPIC:
            self.tell("worker-exit", **message)
        elif topic == "scheduler" and message.get("action") == "worker-ttl-timed-out":
            for address in message["workers"]:
                self.tell("hung-worker", address=address, silent_s=message["ttl"])

    def add_client(self, scheduler: Scheduler, client: str) -> None:
        self.tell("client", client=client)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        self.tell("lost-client", client=client)


async def dask_setup(scheduler: Scheduler) -> None:
    if PLUGIN_NAME in scheduler.plugins:  # preloads can run twice
        return
    try:
        timeout = os.environ.get(IDLE_TIMEOUT_VARIABLE)
        reporter = Reporter(scheduler, float(timeout) if timeout else None)
        scheduler.add_plugin(reporter, name=PLUGIN_NAME)
        if check := scheduler.periodic_callbacks.get("worker-ttl"):
            check.callback_time = min(check.callback_time, TTL_CHECK_S * 1000)
        await reporter.connect(os.environ[CONTROL_FOLDER_VARIABLE])
    except BaseException:
        # Distributed only logs what a preload raises, and a scheduler that boot cannot see would run for ever.
        logger.critical("the scheduler cannot reach boot: it ends", exc_info=True)
        os._exit(1)


async def dask_teardown(scheduler: Scheduler) -> None:
    reporter: Reporter = scheduler.plugins[PLUGIN_NAME]
    reporter.callback.stop()
    reporter.tell("closed", reason=reporter.close_reason)
    if reporter.writer:
        await reporter.writer.drain()
