"""A stand-in batch system with one job or two, and a real scheduler in this process."""

import pytest
from distributed import LocalCluster
from standin import Batch

from mpiboot.batch.job_state import JobState
from mpiboot.client import find, job_states, published, scheduler_file, submit, watch
from mpiboot.client.job import Job
from mpiboot.protocol.job_directory import JobDirectory


@pytest.fixture(autouse=True)
def no_networks(monkeypatch):
    """The arguments of a job do not depend on this host's networks."""
    monkeypatch.setattr(submit, "networks_here", list)


@pytest.fixture
def batch(tmp_path, monkeypatch):
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / 'it\'s a "home"'))
    monkeypatch.setattr(job_states, "_caches", {})
    monkeypatch.setattr(watch, "poll_interval_s", lambda waited_s: 0.1)
    for module in (watch, scheduler_file):
        monkeypatch.setattr(module, "FILE_POLL_S", 0.02)
        monkeypatch.setattr(module, "SETTLE_S", 0.5)
    for module in (watch, scheduler_file, published):
        monkeypatch.setattr(module, "ATTEMPT_S", 1.0)
    monkeypatch.setattr(watch, "REPLACED_S", 0.5)
    return Batch()


@pytest.fixture
def job(batch, tmp_path):
    JobDirectory.create(tmp_path / 'it\'s a "home"', "stand-in-7")
    return Job("7", batch)


@pytest.fixture(scope="session")
def cluster():
    with LocalCluster(n_workers=1, processes=False, protocol="tcp", dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def two(monkeypatch, tmp_path):
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path))
    states = [
        JobState("7", "flights", "running", "RUNNING", nodes="node[1-2]"),
        JobState(
            "8",
            "mpiboot",
            "pending",
            "PENDING",
            "Resources and much more that does not fit into a line of 80 columns",
        ),
    ]
    live = [(Job(state.job_id, Batch()), state) for state in states]
    monkeypatch.setattr(find, "live_jobs", lambda **_: live)
    return live
