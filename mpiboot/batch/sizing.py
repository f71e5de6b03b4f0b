"""Computes the workers that fit in an allocation, node by node.

Boot sizes the workers; the client uses `check_min_workers` and `check_memory`. It is independent of the batch system.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mpiboot.batch.allocation import Allocation, Node
from mpiboot.common.units import show_size
from mpiboot.errors import UsageError

MIB = 1024**2
GIB = 1024**3
CPUS_PER_WORKER = 4
# A worker without data uses about as much: with less, its nanny would restart it again and again.
LEAST_WORKER_BYTES = 64 * MIB


@dataclass(frozen=True)
class NodeWorkers:
    """The workers of one node, which all have the same size.

    Attributes
    ----------
    n_workers : int
        Number of workers.
    threads_per_worker : int
        Threads of each worker.
    memory_limit_bytes : int
        Memory limit of each worker, in bytes.
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
        The workers of each node, by the node's name, in the order of the allocation.
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
            f"--min-workers {min_workers}: the job has {n_workers} workers at most",
            "Ask for fewer, or for more nodes with --nodes",
        )


def check_memory(memory_bytes: int | None, n_workers: int) -> None:
    """Refuse a `--mem` that is too little for the workers of a node, whatever the node.

    Parameters
    ----------
    memory_bytes : int or None
        The option; None and 0 are no number: the batch system's, and all.
    n_workers : int
        The least number of workers on a node.

    Raises
    ------
    UsageError
        It is too little.
    """
    if memory_bytes and (memory_bytes - reserved_bytes(memory_bytes)) // n_workers < LEAST_WORKER_BYTES:
        raise UsageError(
            f"--mem {show_size(memory_bytes)} is too little for {n_workers} worker{'s' * (n_workers > 1)}",
            f"Ask for {show_size(LEAST_WORKER_BYTES)} and more for each, such as --mem {2 * n_workers}G",
        )


def size_workers(
    allocation: Allocation,
    memory_bytes: Mapping[str, int],
    workers_per_node: int | None,
    cpus_per_worker: int | None,
    stage_bytes: Mapping[str, int] | None = None,
    allowed_cpus: Mapping[str, int] | None = None,
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
        The user's options of these names.
    stage_bytes : mapping of str to int, optional
        Size of the staged environment on the nodes whose staging root is memory: it is subtracted from the node's
        memory.
    allowed_cpus : mapping of str to int, optional
        CPUs that the kernel allows on the nodes where it allows fewer than the batch system says: workers get fewer
        threads, or there are fewer of them.

    Raises
    ------
    UsageError
        The user's numbers exceed a node's CPUs, or a node's memory is too little for its workers; the message names the
        node.
    """
    return Sizing(
        {
            node.name: _size_node(
                node,
                memory_bytes[node.name],
                workers_per_node or node.tasks,
                cpus_per_worker or allocation.cpus_per_task,
                (stage_bytes or {}).get(node.name, 0),
                (allowed_cpus or {}).get(node.name, node.cpus),
            )
            for node in allocation.nodes
        }
    )


def _size_node(
    node: Node,
    memory_bytes: int,
    n_workers: int | None,
    threads: int | None,
    stage_bytes: int,
    allowed_cpus: int,
) -> NodeWorkers:
    cpus = min(node.cpus, allowed_cpus)
    if n_workers is None:
        n_workers = max(1, cpus // (threads or CPUS_PER_WORKER))
    if threads is None:
        threads = max(1, cpus // n_workers)
    if n_workers * threads > node.cpus:
        raise UsageError(
            f"{n_workers} workers of {threads} CPUs each need {n_workers * threads} CPUs; "
            f"the job has {node.cpus} on {node.name}",
            "Ask for fewer workers with --workers-per-node, or for fewer CPUs with --cpus-per-worker",
        )
    threads = max(1, min(threads, cpus // n_workers))
    limit = (memory_bytes - stage_bytes - reserved_bytes(memory_bytes - stage_bytes)) // n_workers
    if limit < LEAST_WORKER_BYTES:
        stage = f", less the {show_size(stage_bytes)} of the staged environment," if stage_bytes else ""
        raise UsageError(
            f"{show_size(memory_bytes)} of memory on {node.name}{stage} is too little for {n_workers} workers",
            "Ask for more with --mem",
        )
    return NodeWorkers(n_workers, threads, limit)


def reserved_bytes(available_bytes: int) -> int:
    """Return how much of a node's memory is left to the scheduler, the nannies and the page cache."""
    return min(2 * GIB, available_bytes // 10)
