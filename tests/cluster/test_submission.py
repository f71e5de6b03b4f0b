"""Submitting to a real Slurm: jobs with hostile names beside ours, own comments, lost answers, limits, refusals."""

from __future__ import annotations

import json

import pytest
from disturb import reconfigure, slurm_settings

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("leaves_nothing")]

HELD = ("--no-stage", "--nodes", "2", "--batch-arg=--hold")
HOSTILE = (
    "a\nb",
    "7|mpiboot",
    "x\x1fRUNNING\x1f\ny",
    "mpiboot\n   StdOut=/etc/passwd",
    "a EndTime=x ArrayJobId=3",
    "\x1b[2J",
)


def queued(alice):
    return alice.types("squeue", "--noheader", "--me", "--format", "%i").stdout.split()


def listed(alice):
    return [job["job_id"] for job in json.loads(alice.types(alice.bin / "mpiboot", "list", "--json").stdout)]


def test_jobs_with_any_name_and_comment_beside_ours(alice):
    script = alice.writes("sleep.sh", "#!/bin/sh\nsleep 600\n")
    for text in HOSTILE:
        alice.types("sbatch", "--hold", "--nodes=2", f"--job-name={text}", f"--comment={text}", script)
    alice.types(
        "sh", "-c", r"sbatch --hold -N2 --comment=$(printf '\377\376') --job-name=$(printf '\377') sleep.sh"
    )
    job_id = alice.submits(*HELD)
    assert listed(alice) == [job_id]
    shown = alice.types(alice.bin / "mpiboot", "list").stdout
    assert len(shown.splitlines()) == 2 and job_id in shown
    assert "JobHeldUser" in alice.types(alice.bin / "mpiboot", "status").stdout
    alice.stops(job_id)
    assert len(queued(alice)) == len(HOSTILE) + 1 and listed(alice) == []


def test_a_job_of_ours_with_a_hostile_name_runs(alice):
    name = "a EndTime=2000-01-01T00:00:00 ArrayJobId=3 Restarts=9"
    done = alice.types(
        *(alice.bin / "mpiboot", "submit", "--no-stage", "--nodes", "2", "--interface", "ib0", "--wait"),
        *("--job-name", name, "--batch-arg=--comment=project 12", "--", "bash", "-c", "echo it ran"),
    )
    job_id = done.stdout.strip()
    assert "it ran" in alice.types(alice.bin / "mpiboot", "logs", job_id).stdout


def test_with_another_comment_a_job_is_found_while_it_waits_and_while_it_runs(alice):
    job_id = alice.submits(*HELD, "--interface", "ib0", "--batch-arg=--comment=project 12")
    assert alice.types("squeue", "--noheader", "--me", "--format", "%k").stdout.strip() == "project 12"
    assert listed(alice) == [job_id]
    alice.types("scontrol", "release", job_id)
    alice.types(alice.bin / "mpiboot", "connect")
    assert listed(alice) == [job_id]
    assert "COMPLETED" in alice.types(alice.bin / "mpiboot", "stop").stderr
    assert listed(alice) == [] and not list(alice.home.glob(f".mpiboot/submitted/*-{job_id}"))


@pytest.fixture
def wrapped_sbatch(alice):
    """Put lines in front of what the user calls as sbatch, which makes the job first."""

    def wrap(lines):
        alice.writes("fake/sbatch", f'#!/bin/sh\n/usr/bin/sbatch "$@" > made || exit\n{lines}\n')
        alice.types("chmod", "+x", "fake/sbatch")
        return {"PATH": f"/home/alice/fake:{alice.bin}:/usr/bin:/bin"}

    yield wrap
    alice.types("rm", "-r", "fake", "made")


def test_a_job_whose_sbatch_fails_after_it_has_submitted_is_used(alice, wrapped_sbatch):
    path = wrapped_sbatch('[ "$1" = --test-only ] || { echo "sbatch: error: Socket timed out" >&2; exit 1; }')
    done = alice.types(alice.bin / "mpiboot", "submit", *HELD, **path)
    assert [done.stdout.strip()] == queued(alice) == [(alice.home / "made").read_text().strip()]
    assert (
        f"sbatch: error: Socket timed out; job {done.stdout.strip()} was submitted all the same"
        in done.stderr
    )


INTERRUPTED = """
import signal, subprocess, sys, time
submit = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
while not subprocess.check_output(["squeue", "--noheader", "--me"]):
    time.sleep(0.2)
submit.send_signal(signal.SIGINT)
out, err = submit.communicate(timeout=60)
print(submit.returncode, repr(out), err)
"""


def test_ctrl_c_while_sbatch_hangs_leaves_no_job(alice, wrapped_sbatch):
    path = wrapped_sbatch('[ "$1" = --test-only ] || sleep 600')
    said = alice.runs_python(INTERRUPTED, alice.bin / "mpiboot", "submit", *HELD, **path)
    job_id = (alice.home / "made").read_text().strip()
    assert (
        said
        == f"130 '' \nmpiboot: sbatch was interrupted; job {job_id}, which it had submitted, is cancelled\n\n"
    )
    assert queued(alice) == []


def test_limits_of_the_login_node_stay_there_and_whole_nodes_have_their_memory(minicluster, alice):
    minicluster.login(["scontrol", "update", "partition=multiple", "DefMemPerNode=1000"], user="root")
    command = "ulimit -t; scontrol show job $(ls -t ~/.mpiboot/jobs | head -1 | grep -o '[0-9]*$')"
    try:
        job_id = alice.types(
            *(
                "bash",
                "-c",
                'ulimit -t 300; umask 0002; "$@"',
                "bash",
                alice.bin / "mpiboot",
                "submit",
                "--no-stage",
            ),
            *("--nodes", "2", "--interface", "ib0", "--wait", "--", "bash", "-c", command),
        ).stdout.strip()
    finally:
        reconfigure(minicluster)
    log = alice.types(alice.bin / "mpiboot", "logs", job_id).stdout
    assert "\nunlimited\n" in log
    assert "MinMemoryNode=0 " in log


@pytest.mark.parametrize(
    ("options", "variables", "message"),
    [
        (["--time", "30-0"], {}, "Slurm would never start this job: PartitionTimeLimit. Job "),
        (["--nodes", "99"], {}, "Slurm would never start this job: PartitionConfig. Job "),
        (["--nodes", "1"], {}, "Slurm would never start this job: Partition"),
        (["--mem", "99999G"], {}, "sbatch: error: Memory specification can not be satisfied"),
        (["--partition", "nope"], {}, "sbatch: error: invalid partition specified: nope"),
        (["--batch-arg=--gres=gpu:1"], {}, "sbatch: error: Invalid generic resource (gres) specification"),
        (["--batch-arg=--constraint=x"], {}, "Invalid feature specification"),
        (["--batch-arg=--array=1-2"], {}, "--batch-arg=--array: an array is many jobs"),
        (["--batch-arg=:"], {}, "--batch-arg=:: a heterogeneous job"),
        (
            ["--batch-arg=-Mother"],
            {},
            "--batch-arg=--clusters=other: mpiboot submits to this host's own cluster",
        ),
        ([], {"SLURM_CLUSTERS": "other"}, "SLURM_CLUSTERS=other: mpiboot submits to"),
        ([], {"SBATCH_WAIT": "1"}, "SBATCH_WAIT: sbatch would return only when the job ends"),
        ([], {"SBATCH_ARRAY_INX": "1-2"}, "SBATCH_ARRAY_INX: an array is many jobs"),
    ],
)
def test_a_request_that_cannot_work_is_refused_and_leaves_no_job(
    minicluster, alice, options, variables, message
):
    """Also where Slurm takes jobs whatever its partitions' limits are."""
    minicluster.login(["scontrol", "update", "partition=multiple", "MaxTime=60"], user="root")
    done = alice.types(
        alice.bin / "mpiboot", "submit", "--no-stage", "--nodes", "2", *options, check=False, **variables
    )
    assert (done.returncode in (1, 2), done.stdout) == (True, "")
    assert message in done.stderr.partition("\n")[0]
    assert "Traceback" not in done.stderr
    assert queued(alice) == []


@pytest.fixture(scope="module", autouse=True)
def without_enforced_limits(minicluster):
    """As where EnforcePartLimits has its default."""
    with slurm_settings(minicluster, EnforcePartLimits="NO"):
        yield
