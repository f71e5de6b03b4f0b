"""The scheduler's preload, in a real scheduler, with boot's own end of the socket."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from distributed import Scheduler, Worker

from mpiboot.boot.control import Control
from mpiboot.preloads import scheduler as preload
from mpiboot.preloads.nanny import WORKER_EXIT_TOPIC
from mpiboot.protocol.variables import CONTROL_FOLDER_VARIABLE, IDLE_TIMEOUT_VARIABLE


@pytest.fixture
def control(tmp_path, monkeypatch):
    monkeypatch.setenv(CONTROL_FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(IDLE_TIMEOUT_VARIABLE, "")
    control = Control(tmp_path)
    yield control
    control.close()


def receive(control, event):
    """The messages that boot receives, up to one of that kind."""
    deadline = time.monotonic() + 20
    messages = []
    while not any(message["event"] == event for message in messages):
        assert time.monotonic() < deadline, messages
        messages += control.poll(0.1)
    return messages


def run(scenario):
    async def start():
        async with Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler:
            await preload.dask_setup(scheduler)
            await preload.dask_setup(scheduler)  # preloads can run twice
            try:
                await asyncio.wait_for(scenario(scheduler), 30)
            finally:
                await preload.dask_teardown(scheduler)
                scheduler.plugins[preload.PLUGIN_NAME].writer.close()  # as when the process ends

    asyncio.run(start())


def test_boot_hears_of_the_scheduler_its_workers_and_its_close(control):
    async def scenario(scheduler):
        async with Worker(scheduler.address, name="mpiboot-3", host="127.0.0.1", dashboard_address=":0"):
            scheduler.log_event(WORKER_EXIT_TOPIC, {"exit_status": 7})
        for message in await asyncio.to_thread(receive, control, "lost-worker"):
            heard.append(
                {key: message[key] for key in ("event", "name", "ip", "n", "exit_status") if key in message}
            )
        assert control.send("close", reason="stopped")
        await scheduler.finished()

    heard = []
    run(scenario)
    assert heard == [
        {"event": "scheduler"},
        {"event": "worker", "name": "mpiboot-3", "ip": "127.0.0.1", "n": 1},
        {"event": "worker-exit", "exit_status": 7},
        {"event": "lost-worker", "n": 0},
    ]
    assert [(message["event"], message.get("reason")) for message in receive(control, "disconnected")] == [
        ("closed", "stopped"),
        ("disconnected", None),
    ]


def test_boot_hears_whether_a_worker_was_retired(control):
    async def scenario(scheduler):
        async with Worker(scheduler.address, name="mpiboot-3", host="127.0.0.1", dashboard_address=":0"):
            await scheduler.retire_workers(names=["mpiboot-3"])
            heard.extend(await asyncio.to_thread(receive, control, "retired-worker"))

    heard = []
    run(scenario)
    assert [(message["event"], message.get("n")) for message in heard[1:]] == [
        ("worker", 1),
        ("retired-worker", 0),
    ]


def test_a_scheduler_whose_boot_dies_closes(control):
    async def scenario(scheduler):
        await asyncio.to_thread(receive, control, "scheduler")
        control._peer.shutdown(2)
        await scheduler.finished()
        assert scheduler.plugins[preload.PLUGIN_NAME].close_reason == "boot-died"

    run(scenario)


def test_the_idle_timeout_counts_from_when_clients_can_connect(control, monkeypatch):
    """Workers of a large job may start for longer than the idle timeout."""
    monkeypatch.setenv(IDLE_TIMEOUT_VARIABLE, "0.3")
    monkeypatch.setattr(preload, "IDLE_CHECK_MS", 20)

    async def scenario(scheduler):
        reporter = scheduler.plugins[preload.PLUGIN_NAME]
        reporter.last_use -= 100
        await asyncio.to_thread(receive, control, "scheduler")
        assert not reporter.idle_check.is_running()
        published = time.monotonic()
        assert control.send("published")
        await scheduler.finished()
        assert time.monotonic() - published >= 0.3

    run(scenario)
    [closed] = [message for message in receive(control, "disconnected") if message["event"] == "closed"]
    assert closed["reason"] == "idle-timeout"


@pytest.mark.parametrize(
    ("clients", "work", "idle_timeout_s", "closes"),
    [
        ([], None, 60.0, False),
        (["Client-1"], 1.0, 60.0, False),
        (["fire-and-forget"], 1.0, 60.0, True),
        ([], 1.0, 60.0, True),
        ([], 1.0, None, False),
    ],
    ids=["work", "client", "no client but Dask's own", "idle", "no timeout"],
)
def test_an_idle_cluster_closes(clients, work, idle_timeout_s, closes):
    """`check_idle` of a scheduler that has work returns None, and otherwise the time since when it has none."""
    closed = []

    async def close(reason):
        closed.append(reason)

    async def check():
        reporter = preload.Reporter(SimpleNamespace(clients=clients, check_idle=lambda: work), idle_timeout_s)
        reporter.close_scheduler = close
        reporter.last_use -= 100
        reporter.check_idle()
        await asyncio.sleep(0)

    asyncio.run(check())
    assert closed == (["idle-timeout"] if closes else [])


def test_a_scheduler_that_cannot_reach_boot_ends_and_says_so_in_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(CONTROL_FOLDER_VARIABLE, str(tmp_path / "missing"))
    statuses = []
    monkeypatch.setattr(preload.os, "_exit", statuses.append)

    async def start():
        async with Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler:
            await preload.dask_setup(scheduler)

    asyncio.run(start())
    assert statuses == [1]
    [said] = [record for record in caplog.records if record.name == preload.__name__]
    assert (
        said.exc_info is None and "FileNotFoundError" in said.getMessage() and "\n" not in said.getMessage()
    )
