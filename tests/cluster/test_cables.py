"""Cut cables, a lost first node: a node that is cut off gives up itself alone; only the first one's loss ends a job."""

import re
import secrets
import time

import pytest
from disturb import cut, cut_at_random, is_cleaned, parted, pids
from faults import assert_nothing_remains, boot
from undisturbed import SILENCE_S, TWO, stops_in_time
from waiting import wait_until
from workload import Workload

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("leaves_nothing", "patient_slurm")]

# From the silence to a clean node: questions to the other agents, and the clean-up.
GRACE_S = 25.0
THREE = ("--nodes", "3", "--workers-per-node", "1")
# Some nodes of a job of two: its second node is the third one of another job.
FIRST_AND_LAST = ("--nodes", "2", "--workers-per-node", "1", "--batch-arg=--nodelist=node[1,3]")


def test_a_cable_that_is_out_for_a_while_costs_nothing(minicluster, alice):
    """Twice: the agent is missed, dials again and is taken back; its workers are the same as before."""
    job = boot(alice, *TWO)
    workload = Workload(job, 4)
    for count in (1, 2):
        with cut(minicluster, 2):
            heal_at = time.monotonic() + 20
            job.wait_for("agent-silent", count, timeout_s=20)
            wait_until(lambda heal_at=heal_at: time.monotonic() > heal_at, "20 s", 30)
        job.wait_for("agent-back", count, timeout_s=30)
        workload.goes_on(20)
    assert workload.ends_well()["workers"] == 4
    told = [event for event in job.events() if event["event"].startswith("agent-")]
    assert [(event["event"], event["host"]) for event in told] == [
        ("agent-silent", "node2"),
        ("agent-back", "node2"),
    ] * 2
    assert all(event["detail"] for event in told)
    assert {event["event"] for event in job.events()} & {"lost-worker", "worker-exit", "lost-agent"} == set()
    stops_in_time(job)


def test_a_node_that_stays_cut_off_gives_up_itself_alone(minicluster, alice):
    """In jobs of two and of three nodes at once; no job is cancelled, although that node reaches slurmctld."""
    jobs = [boot(alice, *THREE), boot(alice, *FIRST_AND_LAST)]
    workloads = [Workload(job, n_workers) for job, n_workers in zip(jobs, (3, 2), strict=True)]
    assert len(pids(minicluster, 3, "[a]gent.pyc")) == 2
    with parted(minicluster, 3, (1, 2)):
        is_cleaned(minicluster, 3, SILENCE_S + GRACE_S)
        for job in jobs:
            (told,) = job.wait_for("lost-agent", timeout_s=20)
            assert told["host"] == "node3" and told["detail"]
            said = (job.folder / "ranks.log").read_text(errors="replace")
            assert re.search(
                r"the agent on node3 ends: this node is cut off: nothing was heard of boot", said
            )
        for workload, n_workers in zip(workloads, (2, 1), strict=True):
            workload.has_workers(n_workers)
            workload.goes_on(20)
    for job, workload in zip(jobs, workloads, strict=True):
        workload.goes_on(5)
        workload.ends_well()
        assert job.slurm_state() == "RUNNING" and job.named("closed") == []
    for job in jobs:
        job.user.stops(job.job_id)
        assert job.named("closed")[-1]["reason"] == "stopped"
    assert_nothing_remains(alice)


# How the first node is lost; cut off, its part of the shared file system may still work.
LOSSES = {"killed": "kill", "cut off": "cut"}


@pytest.mark.parametrize("how", LOSSES)
def test_the_first_node_is_lost(minicluster, alice, how):
    """The other agents find that together, cancel the job, and leave nothing."""
    jobs = [boot(alice, *THREE)]
    if how == "killed":  # the agent of two nodes' second one sees that boot leaves no sign of life
        jobs.append(boot(alice, *FIRST_AND_LAST))
    getattr(minicluster, LOSSES[how])(1)
    try:
        for job in jobs:
            closed = job.wait_for("closed", timeout_s=SILENCE_S + GRACE_S)[-1]
            assert closed["reason"].startswith("the first node, node1, is lost: ")
            assert closed["exit_status"] == 1
            assert job.slurm_state() in ("CANCELLED", "COMPLETING")  # on node1 it cannot end yet
            status = alice.types("mpiboot", "status", job.job_id).stdout
            assert "the first node, node1, is lost" in " ".join(status.split())
        assert_nothing_remains(alice, (2, 3))
    finally:
        (minicluster.start if how == "killed" else minicluster.heal)(1)
    for job in jobs:
        job.wait_ended(60)
    assert_nothing_remains(alice)


def test_random_cuts(minicluster, alice):
    """`make soak SOAK=cables` does so for ten minutes."""
    seed = secrets.randbelow(10**6)
    print(f"seed {seed}")
    job = boot(alice, *THREE)
    workload = Workload(job, 3, node=1, tolerant=True)
    print(cut_at_random(minicluster, workload, 30, seed, longest_s=20), "cuts")
    workload.goes_on(20, timeout_s=90)
    print(workload.ends_well())
    assert job.slurm_state() == "RUNNING"
    stops_in_time(job)
