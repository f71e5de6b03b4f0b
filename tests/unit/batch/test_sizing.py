import pytest

from mpiboot.batch import sizing as sizings
from mpiboot.batch.allocation import Allocation, Node
from mpiboot.batch.sizing import GIB, MIB, NodeWorkers
from mpiboot.errors import UsageError


def job(*nodes, per_task=None):
    return Allocation("slurm", "1", "k", nodes, per_task)


def size(allocated, memory_bytes=20 * GIB, workers=None, cpus=None, stage_bytes=None):
    """Workers, threads per worker and memory limit of each node."""
    memory = dict.fromkeys(allocated.node_names, memory_bytes)
    sizing = sizings.size_workers(allocated, memory, workers, cpus, stage_bytes)
    for node in allocated.nodes:
        workers_there = sizing.by_node[node.name]
        assert workers_there.n_workers * workers_there.threads_per_worker <= node.cpus
    return list(sizing.by_node.values())


@pytest.mark.parametrize(
    ("node", "per_task", "workers", "cpus", "expected"),
    [
        (Node("n1", 8), None, None, None, NodeWorkers(2, 4, 9 * GIB)),
        (Node("n1", 3), None, None, None, NodeWorkers(1, 3, 18 * GIB)),
        (Node("n1", 9), None, None, None, NodeWorkers(2, 4, 9 * GIB)),
        (Node("n1", 8, tasks=4), None, None, None, NodeWorkers(4, 2, 18 * GIB // 4)),
        (Node("n1", 8, tasks=2), 4, None, None, NodeWorkers(2, 4, 9 * GIB)),
        (Node("n1", 8), None, None, 2, NodeWorkers(4, 2, 18 * GIB // 4)),
        (Node("n1", 8), None, 3, None, NodeWorkers(3, 2, 6 * GIB)),
        (Node("n1", 8, tasks=4), None, 1, None, NodeWorkers(1, 8, 18 * GIB)),
    ],
)
def test_workers_fit_in_what_a_node_has(node, per_task, workers, cpus, expected):
    assert size(job(node, per_task=per_task), workers=workers, cpus=cpus) == [expected]


def nodes(cpus, tasks=None):
    return [
        Node(f"n{number}", n_cpus, None, n_tasks)
        for number, (n_cpus, n_tasks) in enumerate(zip(cpus, tasks or [None] * len(cpus), strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("cpus", "tasks", "workers", "threads"),
    [
        ((8, 8, 1), (8, 8, 1), [8, 8, 1], [1, 1, 1]),
        ((8, 8), (7, 1), [7, 1], [1, 8]),
        ((16, 8, 2), None, [4, 2, 1], [4, 4, 2]),
        ((8, 4), (2, 2), [2, 2], [4, 2]),
    ],
)
def test_each_node_is_filled(cpus, tasks, workers, threads):
    sizes = size(job(*nodes(cpus, tasks)))
    assert [node.n_workers for node in sizes] == workers
    assert [node.threads_per_worker for node in sizes] == threads


def test_totals_of_unequal_nodes():
    sizing = sizings.size_workers(
        job(*nodes((8, 8, 1), (8, 8, 1))), {"n1": 10 * GIB, "n2": 20 * GIB, "n3": GIB}, None, None
    )
    assert (sizing.n_workers, sizing.n_threads) == (17, 17)
    limits = [node.memory_limit_bytes for node in sizing.by_node.values()]
    assert limits == [9 * GIB // 8, 18 * GIB // 8, GIB - GIB // 10]
    assert sizing.memory_bytes == 8 * limits[0] + 8 * limits[1] + limits[2]


def test_a_tenth_is_left_to_the_scheduler_of_a_small_node():
    assert size(job(Node("n1", 1)), 10 * GIB, 1, 1) == [NodeWorkers(1, 1, 9 * GIB)]


def test_more_than_a_node_has_is_refused():
    with pytest.raises(UsageError, match="need 12 CPUs; the job has 8 on n2"):
        size(job(Node("n1", 12), Node("n2", 8)), GIB, 3, 4)


def test_memory_that_the_staged_environment_uses_up():
    message = (
        r"1 GiB of memory on n2, less the 960 MiB of the staged environment, is too little for 1 workers\. "
        "Ask for more with --mem"
    )
    with pytest.raises(UsageError, match=message):
        size(job(Node("n1", 1), Node("n2", 1)), GIB, 1, 1, {"n2": 960 * MIB})


@pytest.mark.parametrize(
    ("node", "workers", "cpus", "allowed", "expected"),
    [
        (Node("n1", 8), None, None, 4, NodeWorkers(1, 4, 18 * GIB)),
        (Node("n1", 8, tasks=4), None, None, 2, NodeWorkers(4, 1, 18 * GIB // 4)),
        (Node("n1", 8), 2, 4, 4, NodeWorkers(2, 2, 9 * GIB)),
        (Node("n1", 4), None, None, 8, NodeWorkers(1, 4, 18 * GIB)),
    ],
)
def test_workers_get_no_more_cpus_than_the_kernel_allows(node, workers, cpus, allowed, expected):
    sizing = sizings.size_workers(job(node), {"n1": 20 * GIB}, workers, cpus, None, {"n1": allowed})
    assert sizing.by_node == {"n1": expected}
