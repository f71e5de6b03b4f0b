"""Checks that a job has not noticed a disturbance."""

from __future__ import annotations

import time
from collections.abc import Sequence

from faults import BootedJob, assert_nothing_remains
from user import User

TWO = ("--nodes", "2", "--workers-per-node", "2")
# A round of a workload that takes longer has waited for what was lost: Dask dials again after 30 s.
STALL_S = 20.0
SILENCE_S = 45.0
# Shorter than the silence after which boot no longer waits for an agent.
STOP_S = 40.0
# Events that boot records if something disturbs the job; not the end of the launcher, which the ranks no longer need.
FAULTS = {
    "agent-silent",
    "hung-worker",
    "lost-agent",
    "lost-node",
    "lost-worker",
    "worker-exit",
}


def submitted(user: User, *options: str, **variables: object) -> BootedJob:
    """Submit a small job with these environment variables set; do not wait for it."""
    small = ("--interface", "ib0", "--cpus-per-worker", "1", "--no-stage", *options)
    job_id = user.submits(*small, **variables)
    return BootedJob(user, job_id, user.job_directory(job_id))


def assert_undisturbed(job: BootedJob) -> None:
    """Fail if boot has recorded a fault, or the job does not run."""
    assert [event for event in job.events() if event["event"] in FAULTS] == []
    assert job.slurm_state() == "RUNNING"


def stops_in_time(job: BootedJob, nodes: Sequence[int] = (1, 2, 3)) -> None:
    """Stop the job as its user does; fail unless it ends within STOP_S, with status 0, and leaves nothing."""
    began = time.monotonic()
    job.user.stops(job.job_id)
    took_s = time.monotonic() - began
    closed = job.named("closed")[-1]
    assert (closed["reason"], closed["exit_status"]) == ("stopped", 0)
    assert took_s < STOP_S, [
        event for event in job.events() if event.get("phase", event["event"]).startswith("clos")
    ]
    assert_nothing_remains(job.user, nodes)
