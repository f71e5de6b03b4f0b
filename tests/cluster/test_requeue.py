"""Two jobs share nodes; one is requeued, and the network is cut meanwhile. Neither loses a result."""

import json
import os
import time

import pytest
from faults import RANK, assert_nothing_remains, boot, kill
from stream import Stream, stop

pytestmark = pytest.mark.cluster

CUT_S = 20
TWO = ("--nodes", "2", "--workers-per-node", "2")


def rank_of(job):
    """Return the shell filter that picks, from the pids pgrep prints, the last one that belongs to the job."""
    return f"while read p; do grep -qz 'MPIBOOT_JOB_KEY={job.folder.name}' /proc/$p/environ && echo $p; done | tail -1"


def cut_for_a_while(cluster, stream):
    """Cut the cable to the scheduler for a while: no error follows, and the stream goes on afterwards."""
    cluster.cut(1, "--interface", "ib0")
    try:
        time.sleep(CUT_S)
    finally:
        cluster.heal(1, "--interface", "ib0")
    stream.goes_on()


def test_two_jobs_share_nodes_while_one_is_requeued_and_a_cable_is_cut(minicluster, alice):
    requeued = boot(alice, *TWO, "--batch-arg=--requeue", staged=True, ready=False)
    kept = boot(alice, *TWO, staged=True)
    requeued.wait_for("ready")
    assert [job.named("stage")[0]["nodes"] for job in (requeued, kept)] == [["node1", "node2"]] * 2
    stream = Stream(kept, 4)
    stream.until("at work with 4 workers")
    kill(minicluster, 2, RANK, which=rank_of(requeued))
    requeued.wait_for("lost-worker")
    waiting = Stream(requeued, 4)
    waiting.until("3 of 4 workers")

    endpoint = requeued.folder / "endpoint.json"
    before = endpoint.read_text()
    alice.types("scontrol", "requeue", requeued.job_id)
    requeued.wait_for("closed")
    stream.goes_on()
    endpoint.write_text(before)  # as if boot had been killed before it could remove it
    os.chown(endpoint, alice.uid, alice.uid)
    endpoint.chmod(0o600)
    waiting.until("PENDING (BeginTime")
    cut_for_a_while(minicluster, stream)  # while the other waits
    waiting.until("at work with 4 workers", 120)
    after = json.loads(endpoint.read_text())
    assert f"workers of {after['scheduler_id']}" in waiting.said()
    assert (json.loads(before)["restart_count"], after["restart_count"]) == (0, 1)

    waiting.ends_well()
    stop(requeued)
    stream.goes_on()
    stream.ends_well()
    assert [event for event in kept.events() if "lost-worker" in event["event"]] == []
    stop(kept)
    assert_nothing_remains(alice)
