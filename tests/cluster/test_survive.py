"""A lost worker or node costs its tasks, not the job."""

import pytest
from faults import RANK, assert_nothing_remains, boot, kill
from waiting import wait_until

pytestmark = pytest.mark.cluster

WORK = """
import sys, time, mpiboot
client = mpiboot.connect(sys.argv[1], n_workers=2)
def square(i):
    time.sleep(0.25)
    return i * i
futures = client.map(square, range(160))
print("at work", flush=True)
assert client.gather(futures) == [i * i for i in range(160)]
print("all right", flush=True)
"""
WORKER = "[s]pawn_main"


def test_losses_cost_tasks_not_results(minicluster, alice):
    job = boot(alice, "--nodes", "3", "--workers-per-node", "2")
    work = alice.writes("work.py", WORK)
    alice.types("bash", "-c", f"setsid python -u {work} {job.job_id} > work.out 2>&1 &")
    output = alice.home / "work.out"
    wait_until(lambda: output.exists() and "at work" in output.read_text(), "work", 40)
    kill(minicluster, 3, WORKER)
    ended = job.wait_for("worker-exit")[0]
    assert (ended["host"], ended["how"]) == ("node3", "by signal 9")
    job.wait_for("worker", 7)
    kill(minicluster, 3, RANK, which="head -1")
    kill(minicluster, 3, RANK, which="tail -1")
    assert len(job.wait_for("lost-worker", 2)) == 2  # none of them by the end of the server
    minicluster.kill(2)
    try:
        assert job.wait_for("lost-node")[0]["host"] == "node2"
        wait_until(lambda: "all right" in output.read_text(), "right results", 60, output.read_text)
        assert job.slurm_state() == "RUNNING"
        alice.stops(job.job_id)
        assert job.named("closed")[-1]["exit_status"] == 0
        assert_nothing_remains(alice, (1, 3))
    finally:
        minicluster.start(2)


def test_too_few_workers_and_the_first_node(minicluster, alice):
    few = boot(alice, "--nodes", "2", "--workers-per-node", "1", "--min-workers", "2")
    first = few.named("phase")[0]["nodes"]
    assert first == ["node1", "node2"]
    minicluster.kill(2)
    minicluster.start(2)
    closed = few.wait_for("closed", timeout_s=60)[-1]
    assert closed["reason"].startswith("1 workers are left, fewer than --min-workers 2, for 30")
    assert closed["exit_status"] == 1
    assert_nothing_remains(alice)
    few.wait_ended(60)
    job = boot(alice, "--nodes", "2", "--workers-per-node", "1")
    minicluster.kill(1)
    try:
        job.wait_ended(120)
        assert job.wait_for("closed")[-1]["reason"].startswith("the first node, node1, is lost")
        assert_nothing_remains(alice, (2,))
    finally:
        minicluster.start(1)
