"""What is open is closed in an order that leaves nothing, whatever had been opened."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from mpiboot.boot import closing
from mpiboot.boot.closing import Opened
from mpiboot.protocol.events import EventLog


class Boot:
    """What a boot has opened; each part writes down what happens to it."""

    def __init__(self, folder):
        self.calls = []
        self.endpoint = folder / "endpoint.json"
        self.endpoint.touch()
        self.log = folder / "events.jsonl"
        self.context = SimpleNamespace(
            events=EventLog(self.log),
            directory=SimpleNamespace(
                endpoint=self.endpoint,
                clear=lambda: self.calls.append("secrets"),
                read_events=self.events,
            ),
        )

    def agents(self, *, replaced=False):
        process = SimpleNamespace(pid=77)
        return SimpleNamespace(
            process=process,
            are_replaced=lambda: replaced,
            close=lambda reason, timeout_s: self.calls.append(("agents", reason, timeout_s)),
        )

    def cluster(self, *, connected=True, gone=True):
        def send(command, **details):
            self.calls.append((command, details))
            return connected

        return SimpleNamespace(
            send=send,
            listen=lambda: None,
            gone=gone,
            close=lambda: self.calls.append("socket"),
        )

    def events(self):
        if not self.log.exists():
            return []
        return [{**json.loads(line), "time": 0} for line in self.log.read_text().splitlines()]


@pytest.fixture
def boot(tmp_path, monkeypatch):
    boot = Boot(tmp_path)
    monkeypatch.setattr(closing, "end", lambda process, *graces: boot.calls.append((process, *graces)))
    monkeypatch.setattr(closing, "end_descendants", lambda spare: boot.calls.append(("descendants", spare)))
    yield boot
    boot.context.events.close()


def test_nothing_was_opened(boot):
    closing.close(boot.context, Opened(), 1, "no room\nnode1: full")
    assert boot.calls == [("descendants", None), "secrets"]
    assert not boot.endpoint.exists()
    assert boot.events() == [
        {"time": 0, "event": "phase", "phase": "closing", "reason": "no room"},
        {"time": 0, "event": "closed", "reason": "no room", "detail": "node1: full", "exit_status": 1},
    ]


@pytest.mark.parametrize(
    ("reason", "command_grace_s"),
    [("stopped", closing.COMMAND_GRACE_S), ("walltime", closing.COMMAND_GRACE_AT_WALLTIME_S)],
)
def test_the_order_of_all_parts(boot, reason, command_grace_s):
    with subprocess.Popen(["sleep", "60"]) as command:
        opened = Opened(boot.agents(), boot.cluster(), "ranks", command)
        closing.close(boot.context, opened, 0, reason)
        assert command.wait(10) == -15
    assert boot.calls == [
        (command, command_grace_s, 0),
        ("close", {"reason": reason}),
        ("ranks", closing.RANKS_CLOSE_S, 1),
        ("descendants", 77),
        "socket",
        ("agents", reason, closing.AGENTS_CLOSE_S),
        "secrets",
    ]


def test_a_scheduler_that_is_not_there_is_not_waited_for(boot):
    opened = Opened(boot.agents(), boot.cluster(connected=False, gone=False), "ranks")
    closing.close(boot.context, opened, 0, "stopped")
    assert boot.calls == [
        ("close", {"reason": "stopped"}),
        ("ranks", 0, 1),
        ("descendants", 77),
        "socket",
        ("agents", "stopped", closing.AGENTS_CLOSE_S),
        "secrets",
    ]


def test_what_belongs_to_another_boot_is_left_to_it(boot):
    closing.close(boot.context, Opened(boot.agents(replaced=True)), 1, "cut off")
    assert boot.calls == [("descendants", 77), ("agents", "cut off", closing.AGENTS_CLOSE_S)]
    assert boot.endpoint.exists()
    assert boot.events() == []


def test_a_loss_that_the_agents_have_recorded_is_not_recorded_again(boot):
    boot.context.events.write("closed", reason="the first node, n1, is lost", detail="", exit_status=1)
    closing.close(boot.context, Opened(), 1, "stopped")
    assert boot.calls == [("descendants", None), "secrets"]
    assert not boot.endpoint.exists()
    assert [event["reason"] for event in boot.events()] == ["the first node, n1, is lost"]
