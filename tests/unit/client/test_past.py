"""`mpiboot list --all`: how jobs of the last days have ended."""

import json
import os
import time

import pytest

from mpiboot.batch.job_state import JobState
from mpiboot.client import past
from mpiboot.errors import BatchAwayError
from mpiboot.protocol.events import EventLog
from mpiboot.protocol.job_directory import JobDirectory, write_atomic

DAY = 86400.0


class Batch:
    """A batch system of the cluster `c`; `said` has what it says of its jobs."""

    name = "standin"

    def __init__(self, said):
        self.said = said

    def job_key(self, job_id):
        return f"standin-c-{job_id}"

    def job_id_of_key(self, key):
        return key.removeprefix("standin-c-") if key.startswith("standin-c-") else None

    def job_id_of(self, text):
        return text

    def ended_word(self, exit_status):
        return f"EXIT {exit_status}"

    def states(self, job_ids):
        if isinstance(self.said, Exception):
            raise self.said
        unknown = JobState("", "", "unknown", "unknown")
        return {job_id: self.said.get(job_id, unknown) for job_id in job_ids}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path))
    return tmp_path


def make(home, job_id, *, age_s, name, closed=None):
    directory = JobDirectory.create(home, f"standin-c-{job_id}")
    write_atomic(directory.job, {"asked": {"job_name": name}})
    events = EventLog(directory.events)
    events.phase("stage")
    if closed:
        events.write("closed", time=time.time() - age_s, reason=closed, exit_status=3)
    events.close()
    os.utime(directory.events, (time.time() - age_s, time.time() - age_s))


def test_how_jobs_ended(home, monkeypatch):
    """From what boot recorded, and what the batch system, or its history, says."""
    said = {
        "2": JobState("2", "flights", "ended", "NODE_FAIL", end=time.time() - 200),
        "4": JobState("4", "late", "running", "RUNNING"),  # it has started meanwhile
    }
    monkeypatch.setattr(past, "available", lambda: {"standin": Batch(said)})
    make(home, "1", age_s=300, name="dimuon", closed="out of room:\ndetails")
    make(home, "2", age_s=250, name="flights")
    make(home, "3", age_s=100, name="lost")
    make(home, "4", age_s=50, name="late")
    make(home, "5", age_s=50, name="live")
    make(home, "6", age_s=8 * DAY, name="old", closed="stopped")
    make(home, "7", age_s=50, name="elsewhere", closed="stopped")
    (home / "jobs/standin-c-7").rename(home / "jobs/standin-other-7")
    now = time.time()
    killed = "boot recorded no reason: it was killed, or its node was lost"
    assert [
        (job.job_id, state.name, state.phase, state.state, state.reason, round((now - state.end) / 50))
        for job, state in past.past_jobs({"standin-c-5"})
    ] == [
        ("1", "dimuon", "ended", "EXIT 3", "out of room", 6),
        ("2", "flights", "ended", "NODE_FAIL", killed, 4),
        ("3", "lost", "unknown", "unknown", "ended, reason unknown", 2),
    ]


def test_a_batch_system_that_is_away(home, monkeypatch, caplog):
    batch = Batch(BatchAwayError("the batch system is away", "Wait"))
    monkeypatch.setattr(past, "available", lambda: {"standin": batch})
    make(home, "1", age_s=300, name="dimuon", closed="stopped")
    assert past.past_jobs() == []
    assert caplog.messages == ["the batch system is away; how jobs of standin have ended is not known"]


def test_a_job_without_a_readable_record_has_no_name(home, monkeypatch):
    monkeypatch.setattr(past, "available", lambda: {"standin": Batch({})})
    make(home, "1", age_s=300, name=None)
    make(home, "2", age_s=200, name="x")
    (home / "jobs/standin-c-2/job.json").write_text(json.dumps([]))
    assert [state.name for _, state in past.past_jobs()] == ["", ""]
