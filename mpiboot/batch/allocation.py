"""What the batch system gave the job: nodes, CPUs, memory, end time; and the workers that fit in.

Read from the batch system's variables; where there is none, the batch system is asked. Ranks are MPI's alone
and never read from here. Standard library only.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mpiboot.common.units import parse_walltime_s, show_size
from mpiboot.errors import AllocationError, UsageError

MIB = 1024**2
GIB = 1024**3
CPUS_PER_WORKER = 4
# A worker that holds no data takes about as much; its nanny would end one after the other.
LEAST_WORKER_BYTES = 64 * MIB


@dataclass(frozen=True)
class Allocation:
    """One job's share of the machine.

    `cpus_per_node` and `memory_per_node_bytes` are those of the smallest node; `memory_per_node_bytes` is None where
    the batch system set no limit. `tasks_per_node` and `cpus_per_task` are None unless the user asked for them.
    """

    batch_system: str
    job_id: str
    job_key: str
    nodes: tuple[str, ...]
    cpus_per_node: int
    memory_per_node_bytes: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    end_time: float | None = None
    restart_count: int = 0


@dataclass(frozen=True)
class Sizing:
    """Workers of every node alike; `memory_limit_bytes` is per worker."""

    workers_per_node: int
    threads_per_worker: int
    memory_limit_bytes: int


def check_min_workers(wanted: int, there: int) -> None:
    """Refuse what would end the job as soon as it is ready."""
    if wanted > there:
        raise UsageError(
            f"--min-workers {wanted}: the job has {there} workers at most. Ask for fewer, or for more nodes"
        )


def read(environ: Mapping[str, str], *, local: bool = False, walltime: str | None = None) -> Allocation:
    """The allocation of the job that this process runs in; `walltime` counts where no batch system keeps one.

    Raises
    ------
    AllocationError
        There is no job, or its variables make no sense.
    """
    if local:
        from mpiboot.batch.local.allocation import local_allocation

        end_time = time.time() + parse_walltime_s(walltime) if walltime else None
        return replace(local_allocation(), end_time=end_time)
    if "SLURM_JOB_ID" in environ:
        from mpiboot.batch.slurm.allocation import scontrol, slurm_allocation

        return slurm_allocation(environ, scontrol)
    raise AllocationError(
        "this is no batch job: neither SLURM_JOB_ID nor another batch system's variables are set. "
        "Submit it: mpiboot submit, or by hand: mpiboot jobscript > slurm.sh && sbatch slurm.sh"
    )


def end_time(allocation: Allocation) -> float | None:
    """When the job ends by what the batch system says now, in seconds since the epoch; None where it does not say."""
    if allocation.batch_system != "slurm":
        return None
    from mpiboot.batch.slurm.allocation import scontrol
    from mpiboot.batch.slurm.text import find_word, slurm_time

    job = scontrol(["show", "job", "--oneliner", allocation.job_id])
    return slurm_time(find_word(job, "EndTime"))


def size_workers(
    allocation: Allocation,
    memory_per_node_bytes: int,
    workers_per_node: int | None,
    cpus_per_worker: int | None,
    stage_bytes: int = 0,
) -> Sizing:
    """Workers whose threads and memory together never exceed what the job was given on a node.

    Neither count given: one worker per 4 CPUs. The scheduler shares the first node: a tenth of the memory,
    at most 2 GiB, stays free for it, on every node alike, since all workers are given the same limit. So do
    `stage_bytes`, the stage's size where the staging root is memory.

    Raises
    ------
    UsageError
        More CPUs are asked for than a node of this job has, or its memory is too little for the workers.
    """
    cpus = allocation.cpus_per_node
    workers = workers_per_node or allocation.tasks_per_node
    threads = cpus_per_worker or allocation.cpus_per_task
    if workers is None:
        workers = max(1, cpus // (threads or CPUS_PER_WORKER))
    if threads is None:
        threads = max(1, cpus // workers)
    if workers * threads > cpus:
        raise UsageError(
            f"{workers} workers per node of {threads} CPUs each need {workers * threads} CPUs; "
            f"the job has {cpus} on {allocation.nodes[0]}. "
            f"Ask for more with sbatch's --cpus-per-task, or for fewer with --workers-per-node"
        )
    left = memory_per_node_bytes - stage_bytes
    limit = (left - min(2 * GIB, left // 10)) // workers
    if limit < LEAST_WORKER_BYTES:
        stage = f", of which the stage takes {show_size(stage_bytes)}," if stage_bytes else ""
        raise UsageError(
            f"{show_size(memory_per_node_bytes)} of memory per node{stage} are too little for {workers} workers. "
            "Ask for more with --mem"
        )
    return Sizing(workers, threads, limit)
