"""`connect` never hangs: each way in which a job goes wrong, made on a real Slurm, ends it soon with an error."""

import json
import re
import subprocess

import pytest
from waiting import wait_until

pytestmark = pytest.mark.cluster

KNOWN_S = 30  # from when Slurm knows to the end of connect; 15 on a machine that does nothing else
SMALL = (
    "--no-stage",
    "--nodes",
    "2",
    "--workers-per-node",
    "1",
    "--cpus-per-worker",
    "1",
    "--interface",
    "ib0",
)
HELD = ("--batch-arg=--hold",)


class Wait:
    """A `mpiboot connect` under way."""

    def __init__(self, user, job_id, *options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = user.begins("mpiboot", "connect", job_id, *options, **pipes)
        self.said = ""

    def until_it_says(self, pattern):
        for line in self.process.stderr:
            self.said += line
            if re.search(pattern, line):
                return
        raise AssertionError(f"it never said {pattern!r}:\n{self.said}")

    def ends(self, within_s=KNOWN_S):
        _, rest = self.process.communicate(timeout=within_s)
        return self.process.returncode, self.said + rest


@pytest.fixture
def connect(alice):
    """A function that begins `mpiboot connect`; processes that a failed test has not waited for are killed."""
    waits = []

    def begin(job_id, *options):
        waits.append(Wait(alice, job_id, *options))
        return waits[-1]

    yield begin
    for wait in waits:
        with wait.process:
            wait.process.kill()


@pytest.fixture(scope="module")
def job(alice):
    job_id = alice.submits(*SMALL)
    yield job_id
    alice.types("mpiboot", "stop", job_id)


def test_cancelled_while_pending(alice, connect):
    job_id = alice.submits(*SMALL, *HELD)
    wait = connect(job_id)
    wait.until_it_says(rf"job {job_id} is PENDING \(JobHeldUser\)")
    alice.types("scancel", job_id)
    status, said = wait.ends()
    assert (status, f"job {job_id} has ended: CANCELLED" in said, "It left no log." in said) == (
        1,
        True,
        True,
    )


def test_cancelled_while_staging(alice, connect):
    job_id = alice.submits(*SMALL)
    wait = connect(job_id)
    wait.until_it_says("starting|staging|launching")
    alice.types("scancel", job_id)
    status, said = wait.ends(KNOWN_S + 10)  # what Slurm waits for the end of the nodes' processes
    assert (status, f"job {job_id} has ended: CANCELLED" in said) == (1, True)
    assert re.search(r"The end of .*(boot\.log|slurm-\d+\.out):\n  \S|It left no log", said)


def test_no_such_partition(alice):
    done = alice.types("mpiboot", "submit", *SMALL, "--partition", "nope", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "mpiboot: sbatch: error: invalid partition specified: nope" in done.stderr


def test_more_nodes_than_there_are(alice):
    done = alice.types("mpiboot", "submit", "--no-stage", "--nodes", "64", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(
        "mpiboot: sbatch: allocation failure: (Node count|.*node configuration|More processors requested)",
        done.stderr,
    )


@pytest.fixture
def hopeless(alice):
    """A job that waits for the success of one that has failed."""
    failed = alice.types("sbatch", "--parsable", "--hold", "--wrap=false").stdout.strip()
    job_id = alice.submits(*SMALL, f"--batch-arg=--dependency=afterok:{failed}")
    alice.types("scancel", failed)
    yield job_id
    alice.types("scancel", job_id)


def test_a_job_that_can_never_start(alice, connect, hopeless):
    status, said = connect(hopeless).ends()
    assert (status, f"job {hopeless} cannot start: PENDING (DependencyNeverSatisfied)" in said) == (1, True)


def test_a_job_that_can_never_start_is_waited_for_as_long_as_asked(alice, connect, hopeless):
    status, said = connect(hopeless, "--queue-timeout", "5").ends()
    assert status == 124
    assert re.search(rf"job {hopeless} is still PENDING \(DependencyNeverSatisfied\) after [5-7]\.\d s", said)


@pytest.mark.parametrize(
    ("options", "reason", "log"),
    [
        # hydra's options, which Open MPI's mpirun does not know
        (["--mpi", "mpich"], "mpirun ended with status", "disable-auto-cleanup"),
        (
            ["--env-var", "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=nonsense"],
            *("the scheduler ended with 0 of 2 workers connected", "Invalid time unit: nonsense"),
        ),
    ],
    ids=["mpirun-fails", "scheduler-dies-at-once"],
)
def test_a_start_that_fails(alice, connect, options, reason, log):
    job_id = alice.submits(*SMALL, *options)
    status, said = connect(job_id).ends(120)
    assert status == 1
    assert re.search(rf"job {job_id} has ended: FAILED \({reason}", said)
    assert re.search(rf"The end of .*boot\.log:\n(  .*\n)*.*{log}", said)
    # It had ended before this one was called.
    status, again = connect(job_id).ends()
    assert (status, f"job {job_id} has ended: FAILED ({reason}" in again) == (1, True)


def starts(alice, connect, what):
    """Submit a job, and send the signal `what` to its rank 0 as soon as that has started."""
    job_id = alice.submits(*SMALL)
    wait = connect(job_id)
    # Slurm gives the first node to the first job
    folder = f"/tmp/mpiboot-{alice.uid}/.jobs/{alice.job_directory(job_id).name}/scheduler.pid"
    found = f"for i in $(seq 300); do [ -s {folder} ] && exec kill -{what} $(cat {folder}); sleep 0.1; done; exit 1"
    alice.cluster.node(1, ["sh", "-c", found], user="root", timeout_s=60)
    return job_id, wait


def test_the_scheduler_is_killed_during_the_start(alice, connect):
    job_id, wait = starts(alice, connect, "KILL")
    status, said = wait.ends()
    assert (status, f"job {job_id} has ended: FAILED (the scheduler ended" in said) == (1, True)


def test_the_walltime_ends_during_the_start(alice, connect):
    job_id, wait = starts(alice, connect, "STOP")
    wait.until_it_says("starting workers")
    alice.cluster.login(["scontrol", "update", f"job={job_id}", "EndTime=now+5"], user="root")
    status, said = wait.ends(KNOWN_S + 45)
    assert (status, f"job {job_id} has ended: TIMEOUT (" in said) == (1, True)


def test_ctrl_c_leaves_the_job_alone(alice, connect):
    job_id = alice.submits(*SMALL, *HELD)
    wait = connect(job_id)
    wait.until_it_says(rf"job {job_id} is PENDING")
    alice.types("pkill", "-INT", "-f", "[m]piboot connect")
    status, said = wait.ends()
    assert status == 130
    assert f"job {job_id} goes on. Come back: mpiboot connect {job_id}; end it: mpiboot stop {job_id}" in said
    assert alice.types("squeue", "--noheader", "--job", job_id, "--format=%T").stdout == "PENDING\n"
    alice.stops(job_id)


def test_a_timeout_says_how_far_it_got(alice, job):
    code = f"import mpiboot; mpiboot.connect({job!r}, timeout=5, n_workers=9)"
    said = alice.runs_python(f"try:\n  {code}\nexcept TimeoutError as error: print(error)")
    assert re.search(rf"job {job} is not ready 5\.0 s after its start: .*\n", said)
    assert said.endswith(f"\nGo on waiting: mpiboot connect {job}; give it up: mpiboot stop {job}\n")


MEDDLE = """
import json, mpiboot, time
from mpiboot.client.find import find_job
path = find_job({job!r}).directory.endpoint
mpiboot.connect({job!r}, timeout="2 min").close()
before = path.read_text()
path.write_text(json.dumps(json.loads(before) | {change!r}))
start = time.monotonic()
try:
    mpiboot.connect({job!r})
except Exception as error:
    print(json.dumps([type(error).__name__, str(error), time.monotonic() - start]))
finally:
    path.write_text(before)
mpiboot.connect({job!r}, timeout="2 min").close()
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"address": "tls://10.78.0.1:9"}, "no Dask scheduler answers at tls://10.78.0.1:9"),
        ({"scheduler_id": "Scheduler-of-an-earlier-run"}, "not as Scheduler-of-an-earlier-run"),
    ],
    ids=["nobody-listens", "another-scheduler"],
)
def test_an_endpoint_that_is_not_the_jobs(alice, job, change, message):
    name, said, seconds = json.loads(alice.runs_python(MEDDLE.format(job=job, change=change)))
    assert (name, f"job {job} is RUNNING, but " in said, message in said) == ("RendezvousError", True, True)
    assert "The end of " in said and seconds < KNOWN_S


def test_what_a_job_published_before_its_requeue(alice, connect):
    """The old endpoint comes back after boot has removed it, as if boot had been killed."""
    job_id = alice.submits(*SMALL, "--batch-arg=--requeue")
    alice.runs_python(f"import mpiboot; mpiboot.connect({job_id!r}, timeout='2 min').close()")
    [endpoint] = alice.home.glob(f".mpiboot/jobs/slurm-*-{job_id}/endpoint.json")
    before = endpoint.read_text()
    alice.types("scontrol", "requeue", job_id)
    wait_until(lambda: not endpoint.exists(), "removal of the endpoint by boot", 30)
    path = f".mpiboot/jobs/{endpoint.parent.name}/endpoint.json"
    alice.runs_python(f"import os; os.umask(0o077); open({path!r}, 'w').write({before!r})")
    status, said = connect(job_id, "--queue-timeout", "3").ends()
    assert (status, f"job {job_id} is still PENDING" in said) == (124, True)
    alice.types("mpiboot", "stop", job_id)


def test_a_notebook_without_slurm(alice, job):
    """As in a container that has the home, and not one command of the system."""
    alice.types("mpiboot", "connect", job)
    bare = {"PATH": str(alice.bin)}
    assert "is ready: 2 workers" in alice.types("mpiboot", "connect", job, **bare).stderr
    code = "import mpiboot; print(mpiboot.connect().submit(sum, [1, 2]).result())"
    assert alice.types("python", "-c", code, **bare).stdout == "3\n"
    assert alice.types("mpiboot", "list", **bare).stdout.splitlines()[1].split()[:3] == [
        job,
        "mpiboot",
        "running",
    ]
    assert (
        "2 of 2 workers on node1 and 1 more, over ib0" in alice.types("mpiboot", "status", job, **bare).stdout
    )
    assert "ready: 2 workers" in alice.types("mpiboot", "logs", job, **bare).stdout
    assert alice.types("mpiboot", "dashboard", **bare).stdout.startswith("http://10.78.0.1:")
    own = alice.submits(*SMALL)
    alice.types("mpiboot", "connect", own)
    assert f"job {own}: ended (client-shutdown)" in alice.types("mpiboot", "stop", own, **bare).stderr
    missing = alice.types("mpiboot", "connect", "99999", check=False, **bare)
    assert missing.returncode == 1 and "The commands of Slurm are not on this machine" in missing.stderr


def test_another_users_scheduler_file(alice, second):
    content = '{"id": "Scheduler-1", "address": "tls://10.78.0.1:1"}'
    second.types("sh", "-c", f"echo '{content}' > /tmp/theirs.json")
    code = "import mpiboot; mpiboot.connect(scheduler_file='/tmp/theirs.json')"
    done = alice.types("python", "-c", code, check=False)
    assert done.returncode == 1
    assert "SecurityError: /tmp/theirs.json cannot be trusted: it belongs to second " in done.stderr


def test_by_the_scheduler_file_of_a_job(alice, job):
    code = f"""
import mpiboot
from mpiboot.client.find import find_job
mpiboot.connect({job!r}, timeout="2 min").close()
with mpiboot.connect(scheduler_file=find_job({job!r}).directory.scheduler_file, n_workers=2) as client:
    print(client.submit(sum, [1, 2]).result())
"""
    assert alice.runs_python(code) == "3\n"
