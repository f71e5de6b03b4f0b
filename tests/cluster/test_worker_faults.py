"""Faults of single processes: memory, deadly tasks, workers that hang; and a notebook that is killed."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
from faults import assert_nothing_remains, boot
from slurmcluster import Minicluster
from user import User

pytestmark = pytest.mark.cluster

CGROUP_V1 = Path("/sys/fs/cgroup/memory/cgroup.procs")
WORK = """
import os, signal, sys, time, mpiboot
client = mpiboot.connect(sys.argv[1])
def square(i):
    time.sleep(0.1)
    return i * i
def once(fault):
    if not os.path.exists(fault):  # in the shared home: the second time it is another worker
        open(fault, "x").close()
        if fault.startswith("greedy"):
            hoard = [b"x" * 2**20 for _ in range(8192)]
        os.kill(os.getpid(), signal.SIGSTOP)
    return fault
def deadly():
    os.kill(os.getpid(), signal.SIGKILL)
def all_right(fault):
    futures = client.map(square, range(40), pure=False)
    assert client.submit(once, fault).result(90) == fault
    assert client.gather(futures) == [i * i for i in range(40)]
    print(fault, "all right", flush=True)
"""
GREEDY_AND_HUNG = "all_right('greedy')\nall_right('hung')\n"
DEADLY = """
try:
    client.submit(deadly).result(120)
except Exception as error:
    print(type(error).__name__, error.allowed_failures, flush=True)
assert client.submit(square, 5).result(60) == 25
print("alive", flush=True)
"""
AT_WORK = """
print("at work", flush=True)
futures = client.map(time.sleep, [1] * 1000, pure=False)  # dropped with their client, but for those that run
time.sleep(600)
"""
GREEDY_ALONE = "all_right('greedy-job')\n"


def notebook(user, job, code):
    return user.runs_python(WORK + code, job.job_id, timeout_s=150)


def test_memory_hang_deadly_task_and_a_killed_notebook(alice):
    """Each costs workers, which come back, and no result; the last client's end is that of the job."""
    quick = ("--env-var", "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=20s", "--idle-timeout", "20 s")
    job = boot(alice, "--nodes", "2", "--workers-per-node", "2", "--mem", "1200M", *quick)
    assert notebook(alice, job, GREEDY_AND_HUNG + DEADLY).splitlines() == [
        "greedy all right",
        "hung all right",
        "KilledWorker 10",
        "alive",
    ]
    greedy, hung, *killed = job.named("worker-exit")
    assert greedy["memory"] == "limit"
    assert greedy["how"].startswith("because of its memory: it came near its limit of 5")
    assert hung["address"] == job.named("hung-worker")[0]["address"]
    assert [event["how"] for event in killed] == ["by signal 9"] * 11
    shown = alice.types("mpiboot", "status", job.job_id).stdout
    # Those 13 and a lost worker; now and then a node loses both of its workers at once, which is a fault of its own.
    assert int(re.search(r"the last 5 of (\d+) faults", shown)[1]) >= 14

    first = alice.begins("python", "-uc", WORK + AT_WORK, job.job_id, stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == "at work\n"
        alice.types("pkill", "-KILL", "-f", "[a]t work")
        assert first.wait(20)
    finally:
        first.kill()
        first.stdout.close()
    assert "done" in notebook(alice, job, "assert client.submit(square, 3).result(60) == 9; print('done')")
    closed = job.wait_for("closed", timeout_s=40)[-1]
    assert (closed["reason"], closed["exit_status"]) == ("idle-timeout", 0)
    job.wait_ended()
    assert_nothing_remains(alice)


@pytest.mark.skipif(not CGROUP_V1.exists(), reason="this machine has no cgroup v1 memory controller")
def test_a_worker_that_the_jobs_cgroup_kills():
    """No limit of Dask's own ends it here: only the kernel, at the job's."""
    with Minicluster.booted("--cgroup", "--nodes=2", suffix="cgroup") as cluster:
        cluster.add_env("env", ["openmpi", "demo"])
        alice = User(cluster)
        unlimited = ("--env-var", "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE=False")
        job = boot(alice, "--nodes", "2", "--workers-per-node", "1", "--mem", "1G", *unlimited)
        assert notebook(alice, job, GREEDY_ALONE) == "greedy-job all right\n"
        (killed,) = job.named("worker-exit")
        assert (killed["memory"], killed["exit_status"]) == ("cgroup", -signal.SIGKILL)
        status = " ".join(alice.types("mpiboot", "status", job.job_id).stdout.split())  # lines are wrapped
        assert "because of its memory: the kernel killed it" in status
        lost = "its tasks, and the results that it alone held, are computed again elsewhere"
        assert lost in status and lost in alice.types("mpiboot", "logs", job.job_id).stdout
        job.stop()
        assert_nothing_remains(alice, (1, 2))


@pytest.mark.parametrize("started", [False, True], ids=["pending", "running"])
def test_ctrl_c_of_submit_wait_leaves_the_job_alone(alice, started):
    small = ("--no-stage", "--nodes", "2", "--workers-per-node", "1", "--interface", "ib0")
    hold = [] if started else ["--batch-arg=--hold"]
    submit = alice.begins(
        "mpiboot", "submit", "--wait", *small, *hold, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        job_id = submit.stdout.readline().strip()
        wanted = re.compile(" is (staging|starting)" if started else " is PENDING")
        assert any(wanted.search(line) for line in iter(submit.stderr.readline, ""))
        alice.types("pkill", "-INT", "-f", "[s]ubmit --wait")
        said = submit.communicate(timeout=20)[1]
    finally:
        submit.kill()
    assert submit.returncode == 130
    come_back = f"job {job_id} goes on. Come back: mpiboot connect {job_id}; end it: mpiboot stop {job_id}"
    assert said.splitlines()[-1] == f"mpiboot: {come_back}"
    state = "RUNNING" if started else "PENDING"
    assert alice.types("mpiboot", "status", job_id).stdout.startswith(f"job {job_id}: {state}")
    alice.stops(job_id)
    assert_nothing_remains(alice)


def test_what_a_lost_first_node_left_is_swept_and_explained(minicluster, alice):
    """Nobody is left to clean up after a job whose only node is gone; the next command does."""
    job = boot(alice, "--partition", "single", "--nodes", "1", "--workers-per-node", "1")
    node = int(job.named("phase")[0]["nodes"][0].removeprefix("node"))
    minicluster.kill(node)
    try:
        job.wait_ended(90)
        assert (job.folder / "tls").is_dir()
        assert alice.types("mpiboot", "list").stdout == ""
        left = [
            path for path in job.folder.iterdir() if path.name in ("tls", "endpoint.json", "scheduler.json")
        ]
        assert left == []
        shown = alice.types("mpiboot", "status", job.job_id).stdout
        assert shown.startswith(f"job {job.job_id}: NODE_FAIL (")
        assert "boot recorded no reason: it was killed, or its node was lost" in shown
    finally:
        minicluster.start(node)
    assert_nothing_remains(alice)
