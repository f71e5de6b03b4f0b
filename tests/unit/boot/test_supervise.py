from types import SimpleNamespace

import pytest

from mpiboot.boot import supervise
from mpiboot.boot.cluster import Cluster
from mpiboot.boot.supervise import LauncherWatch, WorkersWatch
from mpiboot.errors import ClusterLostError
from mpiboot.protocol.events import EventLog

WORKER = {"event": "worker", "address": "tls://10.0.0.1:1", "name": "mpiboot-1", "ip": "10.0.0.1", "n": 1}
LOST = {"event": "lost-worker", "address": "tls://10.0.0.1:1", "n": 0}


@pytest.fixture
def events(tmp_path):
    events = EventLog(tmp_path / "events.jsonl")
    yield events
    events.close()


@pytest.fixture
def cluster(events):
    return Cluster(None, events, {"10.0.0.1": "n1"})


@pytest.mark.parametrize(
    ("status", "died"), [(None, False), (0, False), (10, False), (-9, True), (137, True)]
)
def test_a_killed_launcher_ends_the_job_and_one_that_gave_up_does_not(cluster, events, status, died):
    watch = LauncherWatch(cluster, SimpleNamespace(poll=lambda: status), events)
    assert watch.died() is died
    assert watch.died() is died


def test_too_few_workers_end_the_job_after_the_grace(cluster, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(supervise.time, "monotonic", lambda: clock.now)
    few = WorkersWatch(cluster, 1, tmp_path / "events.jsonl")
    few.check()
    clock.now = 20.0
    cluster.note(WORKER)
    few.check()  # its nanny has started another
    cluster.note(LOST)
    few.check()
    clock.now = 51.0
    with pytest.raises(ClusterLostError, match="0 workers are left, fewer than --min-workers 1"):
        few.check()
