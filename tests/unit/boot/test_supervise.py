import json
from types import SimpleNamespace

import pytest

from mpiboot.boot import supervise
from mpiboot.boot.state import Cluster
from mpiboot.boot.supervise import FewWorkers, launcher_died, note, note_lost_nodes
from mpiboot.config import Config
from mpiboot.errors import ClusterLostError
from mpiboot.protocol.events import EventLog


@pytest.fixture
def job(tmp_path):
    events = EventLog(tmp_path / "events.jsonl")
    yield SimpleNamespace(
        cluster=Cluster(),
        events=events,
        config=Config(min_workers=1),
        directory=SimpleNamespace(events=tmp_path / "events.jsonl"),
        node_of_ip={"10.0.0.1": "n1", "10.0.0.2": "n2"},
        ranks=None,
    )
    events.close()


def written(job):
    return [json.loads(line) for line in job.directory.events.read_text().splitlines()]


def worker(name, ip):
    return {"event": "worker", "address": f"tls://{ip}:{name}", "name": f"mpiboot-{name}", "ip": ip, "n": 1}


def lost(name, ip, n):
    return {"event": "lost-worker", "address": f"tls://{ip}:{name}", "n": n}


def test_a_loss_has_its_host_and_rank_and_what_was_done(job):
    for message in (worker(1, "10.0.0.1"), worker(2, "10.0.0.2"), worker(3, "10.0.0.2")):
        note(job, message)
    note(job, lost(2, "10.0.0.2", 2))
    assert {**written(job)[-1], "time": 0} == {
        **lost(2, "10.0.0.2", 2),
        **{"time": 0, "host": "n2", "rank": 2, "done": "its tasks run on the other workers"},
    }
    assert not job.cluster.lost_nodes


def test_a_node_is_lost_when_no_worker_comes_back(job, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(supervise.time, "monotonic", lambda: clock.now)
    for message in (
        worker(1, "10.0.0.1"),
        worker(2, "10.0.0.2"),
        lost(1, "10.0.0.1", 1),
        lost(2, "10.0.0.2", 0),
    ):
        note(job, message)
    assert set(job.cluster.lost_nodes) == {"n1", "n2"}
    note(job, worker(1, "10.0.0.1"))
    for clock.now in (5.0, 11.0, 12.0):
        note_lost_nodes(job)
    said = [event for event in written(job) if event["event"] == "lost-node"]
    assert [event["host"] for event in said] == ["n2"]


@pytest.mark.parametrize(
    ("memory", "how"),
    [
        (None, "by signal 9"),
        ("limit", "for its memory: it came near its limit of 2.0 GB"),
        ("cgroup", "for its memory: the kernel ended it, over the job's memory limit"),
    ],
)
def test_how_a_worker_ended(job, memory, how):
    message = {
        "event": "worker-exit",
        "address": "a",
        "name": "mpiboot-3",
        "ip": "10.0.0.2",
        "exit_status": -9,
    }
    note(job, {**message, "memory": memory, "limit_bytes": 2e9})
    assert written(job)[-1]["how"].startswith(how[:40])
    assert (written(job)[-1]["host"], written(job)[-1]["rank"]) == ("n2", 3)


@pytest.mark.parametrize(
    ("status", "died"), [(None, False), (0, False), (10, False), (-9, True), (137, True)]
)
def test_a_killed_launcher_ends_the_job_and_one_that_gave_up_does_not(job, status, died):
    job.ranks = SimpleNamespace(poll=lambda: status)
    assert launcher_died(job) is died


def test_too_few_workers_end_the_job_after_the_grace(job, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(supervise.time, "monotonic", lambda: clock.now)
    few = FewWorkers(job)
    few.check()
    clock.now = 20.0
    note(job, worker(1, "10.0.0.1"))
    few.check()  # its nanny has started another
    note(job, lost(1, "10.0.0.1", 0))
    few.check()
    clock.now = 51.0
    with pytest.raises(ClusterLostError, match="0 workers are left, fewer than --min-workers 1"):
        few.check()
