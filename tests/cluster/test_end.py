"""However a job ends: soon, with the right status, and leaving nothing on any node."""

import pytest
from faults import assert_nothing_remains, boot, kill

pytestmark = pytest.mark.cluster

TWO = ("--nodes", "2", "--workers-per-node", "1")
OF_RANK_0 = "cat /tmp/mpiboot-$UID/.jobs/*/scheduler.pid"


@pytest.mark.parametrize(
    ("victim", "which", "reason"),
    [
        ("bin/[d]ask-mpi", OF_RANK_0, "the scheduler (rank 0, on node1) died"),
        ("prterun -n", "head -1", "mpirun, on node1, was killed by SIGKILL"),
        ("mpiboot [b]oot", "head -1", None),
    ],
    ids=["scheduler", "mpirun", "boot"],
)
def test_killed(minicluster, alice, victim, which, reason):
    job = boot(alice, *TWO)
    kill(minicluster, 1, victim, which=which)
    job.wait_ended()
    assert job.slurm_state() == "FAILED"
    assert_nothing_remains(alice)
    if reason:
        closed = job.named("closed")[-1]
        assert closed["reason"].startswith(reason)
        assert closed["exit_status"] == 1


@pytest.mark.parametrize(
    ("how", "state"),
    [(["scancel"], "CANCELLED"), (["mpiboot", "stop"], "COMPLETED")],
    ids=["scancel", "stop"],
)
def test_asked_to_end(alice, how, state):
    job = boot(alice, *TWO)
    alice.types(*how, job.job_id)
    job.wait_ended()
    assert job.slurm_state() == state
    assert_nothing_remains(alice)


def test_the_walltime_is_announced_and_kept(alice):
    """One minute is less than the lead of --signal: the warning comes at once, the close 30 s before the end."""
    script = (
        "import signal, sys, time, distributed\n"
        "client = distributed.Client()\n"
        "client.subscribe_topic('mpiboot', lambda event: print('told', event[1]['event'], flush=True))\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', client.submit(sum, [1, 2]).result()), sys.exit(3)))\n"
        "time.sleep(300)\n"
    )
    command = [str(alice.bin / "python"), "-u", "-c", script]
    job = boot(alice, *TWO, "--time", "1", command=command)
    left_s = job.wait_for("walltime-nears")[0]["time_left_s"]
    assert 10 < left_s < 60
    job.wait_ended(60)
    assert (job.slurm_state(), job.exit_code()) == ("FAILED", "124:0")
    assert job.named("closed")[-1]["reason"] == "walltime"
    output = alice.types("cat", f"slurm-{job.job_id}.out").stdout
    assert "told walltime" in output
    assert "saved 3" in output
    assert_nothing_remains(alice)


def test_idle(alice):
    """A thinking user keeps the cluster; once their notebook is killed, the timeout ends the job, with 0."""
    job = boot(alice, *TWO, "--idle-timeout", "15 s")
    think = (
        f"import mpiboot, os, time; client = mpiboot.connect('{job.job_id}'); print('here', flush=True); "
        "time.sleep(18); os.kill(os.getpid(), 9)"
    )
    assert "here" in alice.runs_python(think, check=False)
    assert job.slurm_state() == "RUNNING"
    closed = job.wait_for("closed", timeout_s=40)[-1]
    assert (closed["reason"], closed["exit_status"]) == ("idle-timeout", 0)
    job.wait_ended()
    assert job.slurm_state() == "COMPLETED"
    assert_nothing_remains(alice)


def test_batch_mode_passes_the_status_on_and_knows_no_idle_timeout(alice):
    job = boot(alice, *TWO, "--idle-timeout", "1 s", command=["sh", "-c", "sleep 5; exit 7"])
    job.wait_ended(30)
    assert job.exit_code() == "7:0"
    assert_nothing_remains(alice)
