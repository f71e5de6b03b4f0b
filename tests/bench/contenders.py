"""Who is measured, and the very scripts that they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setup:
    """One place where all contenders run.

    `staged` is the prefix that mpiboot stages to; `archive` the environment as tar.gz, for the recipe. A path in
    `folder` is seen by all nodes.
    """

    env: Path
    staged: Path
    archive: Path
    folder: Path
    nodes: int
    workers_per_node: int
    threads: int
    slurm: bool

    @property
    def n_workers(self) -> int:
        return self.nodes * self.workers_per_node


@dataclass(frozen=True)
class Contender:
    """`orders` gives what probe.py is told; `needs` is what the nodes' /tmp holds before: `clean`, `staged` or `any`."""

    name: str
    what: str
    needs: str
    orders: Callable[[Setup], dict[str, Any]]
    slurm_only: bool = False


WORKER, NANNY = "distributed.Worker", "distributed.Nanny"
EACH_NODE = "srun --overlap --mem=0 --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 "


def dask_mpi(setup: Setup, prefix: str, worker_class: str, stage: str = "") -> str:
    """The job script of all who use dask-mpi by hand; it notes when its parts were done."""
    network = "--interface ib0" if setup.slurm else "--interface lo"
    return f"""#!/bin/bash
mark() {{ echo "$1 $(date +%s.%N)" >> {setup.folder}/marks; }}
mark script
{stage}
mark stage
export PATH={prefix}/bin:$PATH PYTHONNOUSERSITE=1
cd {setup.folder}
mpirun -n {setup.n_workers + 1} --map-by :OVERSUBSCRIBE --bind-to none \\
    {prefix}/bin/python {prefix}/bin/dask-mpi --scheduler-file {setup.folder}/scheduler.json {network} \\
    --worker-class {worker_class} --nthreads {setup.threads} --scheduler-port 0 --dashboard-address :0 \\
    --local-directory /tmp
"""


def scripted(setup: Setup, text: str, n_tasks_per_node: int, cpus_per_task: int) -> dict[str, Any]:
    """Orders for a job script; its text is written into the shared folder by whoever runs the bench."""
    sbatch = [
        *("sbatch", "--parsable", "--time=10", "--partition=multiple", f"--nodes={setup.nodes}"),
        *(f"--ntasks-per-node={n_tasks_per_node}", f"--cpus-per-task={cpus_per_task}"),
        f"--output={setup.folder}/job.log",
    ]
    return {
        "kind": "script",
        "text": text,
        "script": str(setup.folder / "job.sh"),
        "log": str(setup.folder / "job.log"),
        "sbatch": sbatch if setup.slurm else None,
        "scheduler_file": str(setup.folder / "scheduler.json"),
        "n_workers": setup.n_workers,
    }


def recipe(setup: Setup) -> dict[str, Any]:
    copy = "/tmp/bench-recipe"
    unpack = f"sh -c 'mkdir -p {copy} && tar -zxf {setup.archive} -C {copy}'"
    stage = (EACH_NODE if setup.slurm else "") + unpack
    return scripted(setup, dask_mpi(setup, copy, WORKER, stage), setup.workers_per_node, setup.threads)


def unstaged(setup: Setup) -> dict[str, Any]:
    return scripted(setup, dask_mpi(setup, str(setup.env), WORKER), setup.workers_per_node, setup.threads)


def limit(setup: Setup) -> dict[str, Any]:
    return scripted(setup, dask_mpi(setup, str(setup.staged), WORKER), setup.workers_per_node, setup.threads)


def limit_nanny(setup: Setup) -> dict[str, Any]:
    return scripted(setup, dask_mpi(setup, str(setup.staged), NANNY), setup.workers_per_node, setup.threads)


RUNNER = """import json, sys, time
from dask.distributed import Client
from dask_jobqueue.slurm import SLURMRunner
file, n_workers, nthreads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
options = dict(interface="ib0")
with SLURMRunner(
    scheduler_file=file + ".scheduler",
    scheduler_options=dict(options, dashboard_address=":0"),
    worker_options=dict(options, nthreads=nthreads, local_directory="/tmp"),
) as runner:
    with Client(runner) as client:
        client.wait_for_workers(n_workers, timeout=300)
        workers = time.time()
        assert client.submit(sum, [20, 22]).result(timeout=60) == 42
        with open(file, "w") as told:
            told.write(json.dumps({"workers": workers, "result": time.time()}) + "\\n")
"""


def slurm_runner(setup: Setup) -> dict[str, Any]:
    """Its scheduler and its client are ranks of the job, too: two more than there are workers."""
    program, told = setup.folder / "runner.py", setup.folder / "scheduler.json"
    n_ranks = setup.n_workers + 2
    text = f"""#!/bin/bash
echo "script $(date +%s.%N)" >> {setup.folder}/marks
rm -f {told}.scheduler
cd {setup.folder}
srun --overlap --mem=0 --overcommit --cpu-bind=none -n {n_ranks} {setup.env}/bin/python {program} {told} \\
    {setup.n_workers} {setup.threads}
"""
    orders = scripted(setup, text, setup.workers_per_node, setup.threads)
    return {**orders, "kind": "runner", "files": {str(program): RUNNER}}


def slurm_cluster(setup: Setup) -> dict[str, Any]:
    return {
        "kind": "jobqueue",
        "jobs": setup.nodes,
        "n_workers": setup.n_workers,
        "options": {
            "queue": "single",
            "cores": setup.workers_per_node * setup.threads,
            "processes": setup.workers_per_node,
            "memory": "4GB",
            "interface": "ib0",
            "python": str(setup.env / "bin/python"),
            "walltime": "00:10:00",
            "local_directory": "/tmp",
            "log_directory": str(setup.folder),
            "scheduler_options": {"interface": "ib0", "dashboard_address": ":0"},
        },
    }


def mpiboot(setup: Setup, **options: Any) -> dict[str, Any]:
    where = {"interface": "ib0", "partition": "multiple", "time": "10"} if setup.slurm else {}
    asked = {
        "nodes": setup.nodes,
        "workers_per_node": setup.workers_per_node,
        "cpus_per_worker": setup.threads,
        "batch_system": "slurm" if setup.slurm else "local",
        "env": str(setup.env),
        **where,
        **options,
    }
    return {"kind": "mpiboot", "options": asked}


CONTENDERS = (
    Contender("recipe", "recipe in use today: tar -zxf on each node, mpirun dask-mpi", "clean", recipe),
    Contender("unstaged", "dask-mpi from the shared environment", "any", unstaged),
    Contender("SLURMRunner", "dask-jobqueue, one job", "any", slurm_runner, slurm_only=True),
    Contender("SLURMCluster", "dask-jobqueue, one job per node", "any", slurm_cluster, slurm_only=True),
    Contender("mpiboot, cold", "nothing on the nodes", "clean", mpiboot),
    Contender("mpiboot, warm", "the nodes have the stage", "staged", mpiboot),
    Contender("limit", "dask-mpi (Worker) from an environment that lies in /tmp", "staged", limit),
    Contender(
        "limit, nannies", "the same with dask-mpi's default, a nanny per worker", "staged", limit_nanny
    ),
)
