"""What the batch system gave a job, node by node, and the workers that fit in.

Boot reads the allocation; the client uses `check_min_workers`. MPI's ranks are never read from here: only MPI knows them.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mpiboot.common.units import parse_walltime_s, show_size
from mpiboot.errors import AllocationError, UsageError

MIB = 1024**2
GIB = 1024**3
CPUS_PER_WORKER = 4
# A worker that holds no data uses about as much: with less, its nanny would restart it again and again.
LEAST_WORKER_BYTES = 64 * MIB


@dataclass(frozen=True)
class Node:
    """One node's part of an allocation.

    Attributes
    ----------
    name : str
        As the batch system calls it.
    cpus : int
        CPUs of the job on this node.
    memory_bytes : int or None
        Memory of the job on this node; None if the batch system sets no limit.
    tasks : int or None
        Tasks on this node; None unless the user asked for tasks.
    """

    name: str
    cpus: int
    memory_bytes: int | None = None
    tasks: int | None = None


@dataclass(frozen=True)
class Allocation:
    """One job's share of the machine.

    Attributes
    ----------
    batch_system : str
        `slurm` or `local`.
    job_id, job_key : str
        The batch system's name of the job, and the name of the job's directory.
    nodes : tuple of Node
        At least one; the boot runs on the first.
    cpus_per_task : int or None
        None unless the user asked for it.
    end_time : float or None
        When the batch system ends the job, in seconds since the epoch; None if it does not say.
    restart_count : int
        How often the job was requeued.
    """

    batch_system: str
    job_id: str
    job_key: str
    nodes: tuple[Node, ...]
    cpus_per_task: int | None = None
    end_time: float | None = None
    restart_count: int = 0

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes)

    @property
    def least_cpus(self) -> int:
        """CPUs of the node that has fewest."""
        return min(node.cpus for node in self.nodes)

    @property
    def equal_cpus(self) -> bool:
        """Whether all nodes have the same number of CPUs."""
        return len({node.cpus for node in self.nodes}) == 1


@dataclass(frozen=True)
class NodeWorkers:
    """The workers of one node, which are all alike.

    Attributes
    ----------
    n_workers : int
        How many there are.
    threads_per_worker : int
        Threads of each.
    memory_limit_bytes : int
        Memory limit of each.
    """

    n_workers: int
    threads_per_worker: int
    memory_limit_bytes: int


@dataclass(frozen=True)
class Sizing:
    """The workers of a job.

    Attributes
    ----------
    by_node : dict of str to NodeWorkers
        In the order of the allocation.
    """

    by_node: dict[str, NodeWorkers]

    @property
    def n_workers(self) -> int:
        """Workers of all nodes together."""
        return sum(node.n_workers for node in self.by_node.values())

    @property
    def n_threads(self) -> int:
        """Threads of all workers together."""
        return sum(node.n_workers * node.threads_per_worker for node in self.by_node.values())

    @property
    def memory_bytes(self) -> int:
        """Memory limits of all workers together."""
        return sum(node.n_workers * node.memory_limit_bytes for node in self.by_node.values())


def check_min_workers(min_workers: int, n_workers: int) -> None:
    """Refuse a `--min-workers` that would end the job as soon as it is ready.

    Raises
    ------
    UsageError
        The job will have fewer workers.
    """
    if min_workers > n_workers:
        raise UsageError(
            f"--min-workers {min_workers}: the job has {n_workers} workers at most. Ask for fewer, or for more nodes"
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
    memory_bytes: Mapping[str, int],
    workers_per_node: int | None,
    cpus_per_worker: int | None,
    stage_bytes: Mapping[str, int] | None = None,
) -> Sizing:
    """Fill each node with workers, whose threads and memory never exceed what the job has there.

    The number of workers on a node is `workers_per_node`, else the node's tasks, else one per worker's CPUs (4 if the
    user gave no number). A tenth of each node's memory, at most 2 GiB, stays free for the scheduler and the nannies.

    Parameters
    ----------
    allocation : Allocation
        The job's nodes.
    memory_bytes : mapping of str to int
        Memory that the job may use on each node.
    workers_per_node, cpus_per_worker : int or None
        The user's options.
    stage_bytes : mapping of str to int, optional
        Size of the staged environment on the nodes whose staging root is memory: it counts against the node's memory.

    Raises
    ------
    UsageError
        The user's numbers exceed a node's CPUs, or a node's memory is too little for its workers; names the node.
    """
    return Sizing(
        {
            node.name: _size_node(
                node,
                memory_bytes[node.name],
                workers_per_node or node.tasks,
                cpus_per_worker or allocation.cpus_per_task,
                (stage_bytes or {}).get(node.name, 0),
            )
            for node in allocation.nodes
        }
    )


def _size_node(
    node: Node, memory_bytes: int, n_workers: int | None, threads: int | None, stage_bytes: int
) -> NodeWorkers:
    if n_workers is None:
        n_workers = max(1, node.cpus // (threads or CPUS_PER_WORKER))
    if threads is None:
        threads = max(1, node.cpus // n_workers)
    if n_workers * threads > node.cpus:
        raise UsageError(
            f"{n_workers} workers of {threads} CPUs each need {n_workers * threads} CPUs; "
            f"the job has {node.cpus} on {node.name}. "
            f"Ask for more with sbatch's --cpus-per-task, or for fewer with --workers-per-node"
        )
    available = memory_bytes - stage_bytes
    limit = (available - min(2 * GIB, available // 10)) // n_workers
    if limit < LEAST_WORKER_BYTES:
        stage = f", less the {show_size(stage_bytes)} of the staged environment," if stage_bytes else ""
        raise UsageError(
            f"{show_size(memory_bytes)} of memory on {node.name}{stage} is too little for {n_workers} workers. "
            "Ask for more with --mem"
        )
    return NodeWorkers(n_workers, threads, limit)
