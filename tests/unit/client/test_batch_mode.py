"""`submit --wait -- COMMAND` says what goes on, until the job has ended."""

import dataclasses

import pytest
from standin import PENDING, RUNNING

from mpiboot.batch.job_state import JobState
from mpiboot.client import job as job_module
from mpiboot.client.batch_mode import wait_for_command
from mpiboot.errors import JobEndedError
from mpiboot.protocol.events import EventLog

ENDED = JobState("7", "mpiboot", "ended", "COMPLETED")


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(job_module.Job.wait, "__kwdefaults__", {
        **job_module.Job.wait.__kwdefaults__, "polls": lambda waited_s: 0.0,
    })  # fmt: skip


def test_each_state_and_step_is_said_once(job, batch, tmp_path, monkeypatch):
    output = tmp_path / "slurm-7.out"
    output.touch()
    monkeypatch.setattr(type(batch), "output", lambda self, job_id: output)
    events = EventLog(job.directory.events)
    steps = {4: "stage", 6: "ready", 7: "closing"}

    def state(n):
        if n in steps:
            events.phase(steps[n])
        return PENDING if n < 3 else RUNNING if n < 8 else ENDED

    batch.state = state
    said = []
    assert wait_for_command(job, said.append).state == "COMPLETED"
    events.close()
    assert said == [
        "job 7 is PENDING (Resources)",
        f"job 7 is RUNNING: starting; its output: {output}",
        f"job 7 is RUNNING: its command runs; its output: {output}",
        f"job 7 is RUNNING: closing; its output: {output}",
    ]


def test_a_job_that_cannot_start_is_not_waited_for(job, batch):
    batch.state = dataclasses.replace(PENDING, reason="DependencyNeverSatisfied", cannot_start=True)
    with pytest.raises(JobEndedError, match=r"job 7 cannot start: PENDING \(DependencyNeverSatisfied\)"):
        wait_for_command(job, lambda line: None)
