"""Two live jobs of a stand-in batch system."""

import pytest

from mpiboot.batch.job_state import JobState
from mpiboot.client import find
from mpiboot.client.job import Job


class Batch:
    name = "stand-in"

    def job_key(self, job_id):
        return f"stand-in-{job_id}"


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
    monkeypatch.setattr(find, "live_jobs", lambda: live)
    return live
