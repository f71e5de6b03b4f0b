import json
from types import SimpleNamespace

import pytest

from mpiboot.boot import cluster as clusters
from mpiboot.boot.cluster import Cluster
from mpiboot.protocol.events import EventLog


class Written:
    """A cluster, and the events that it has written."""

    def __init__(self, folder):
        self.path = folder / "events.jsonl"
        self.events = EventLog(self.path)
        self.cluster = Cluster(None, self.events, {"10.0.0.1": "n1", "10.0.0.2": "n2"})

    def read(self):
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def written(tmp_path):
    written = Written(tmp_path)
    yield written
    written.events.close()


def worker(name, ip):
    return {"event": "worker", "address": f"tls://{ip}:{name}", "name": f"mpiboot-{name}", "ip": ip, "n": 1}


def lost(name, ip, n):
    return {"event": "lost-worker", "address": f"tls://{ip}:{name}", "n": n}


def test_a_loss_has_its_host_and_rank_and_what_was_done(written):
    for message in (worker(1, "10.0.0.1"), worker(2, "10.0.0.2"), worker(3, "10.0.0.2")):
        written.cluster.note(message)
    written.cluster.note(lost(2, "10.0.0.2", 2))
    assert {**written.read()[-1], "time": 0} == {
        **lost(2, "10.0.0.2", 2),
        **{"time": 0, "host": "n2", "rank": 2, "done": clusters.COMPUTED_AGAIN},
    }


def test_a_node_is_lost_when_no_worker_comes_back(written, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(clusters.time, "monotonic", lambda: clock.now)
    for message in (
        worker(1, "10.0.0.1"),
        worker(2, "10.0.0.2"),
        lost(1, "10.0.0.1", 1),
        lost(2, "10.0.0.2", 0),
    ):
        written.cluster.note(message)
    written.cluster.note(worker(1, "10.0.0.1"))
    for clock.now in (5.0, 11.0, 12.0):
        written.cluster.note_lost_nodes()
    said = [event for event in written.read() if event["event"] == "lost-node"]
    assert [event["host"] for event in said] == ["n2"]


@pytest.mark.parametrize(
    ("memory", "how", "remedy"),
    [
        (None, "by signal 9", ""),
        ("limit", "because of its memory: it came near its limit of 1.86 GiB", f"; {clusters.MORE_MEMORY}"),
        (
            "cgroup",
            "because of its memory: the kernel killed it at the job's memory limit (its own is 1.86 GiB)",
            f"; {clusters.MORE_MEMORY}",
        ),
    ],
)
def test_how_a_worker_ended_and_what_is_lost_with_it(written, caplog, memory, how, remedy):
    message = {
        "event": "worker-exit",
        "address": "a",
        "name": "mpiboot-3",
        "ip": "10.0.0.2",
        "exit_status": -9,
    }
    written.cluster.note({**message, "memory": memory, "limit_bytes": 2e9})
    event = written.read()[-1]
    done = (
        "its nanny starts another; its tasks, and the results that it alone held, are computed again elsewhere"
        + remedy
    )
    assert [event[key] for key in ("how", "host", "rank", "done")] == [how, "n2", 3, done]
    assert caplog.messages == [f"the worker of rank 3 on n2 ended {how}; {done}"]
