import os
import time

import pytest

from mpiboot.batch import allocation
from mpiboot.batch.allocation import GIB, MIB, Allocation, Node, NodeWorkers
from mpiboot.batch.local import allocation as local
from mpiboot.batch.slurm import allocation as slurm
from mpiboot.common.processes import process_start
from mpiboot.errors import AllocationError, UsageError

ENVIRON = {
    "SLURM_JOB_ID": "77",
    "SLURM_CLUSTER_NAME": "big",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_CPUS_PER_NODE": "8,6",
    "SLURM_TASKS_PER_NODE": "4,3",
    "SLURM_NTASKS": "7",
}
JOB = "JobId=77 JobName=a EndTime=2026-11-22T10:00:00 Nodes=n1 CPU_IDs=0-7 Mem=4096 GRES= Nodes=n2 CPU_IDs=0-5 Mem=2048"


def ask(arguments):
    return {"hostnames": "n1\nn2\n", "job": JOB}[arguments[1]]


def test_slurm():
    assert slurm.slurm_allocation(ENVIRON, ask) == Allocation(
        batch_system="slurm",
        job_id="77",
        job_key="slurm-big-77",
        nodes=(Node("n1", 8, 4096 * MIB, 4), Node("n2", 6, 2048 * MIB, 3)),
        cpus_per_task=None,
        end_time=time.mktime((2026, 11, 22, 10, 0, 0, 0, 0, -1)),
        restart_count=0,
    )


@pytest.mark.parametrize(
    ("more", "memory"),
    [
        ({"SLURM_MEM_PER_NODE": "1000"}, [1000 * MIB, 1000 * MIB]),
        ({"SLURM_MEM_PER_CPU": "100"}, [800 * MIB, 600 * MIB]),
        ({"SLURM_MEM_PER_NODE": "0"}, [4096 * MIB, 2048 * MIB]),
    ],
)
def test_slurm_memory(more, memory):
    allocated = slurm.slurm_allocation(ENVIRON | more, ask)
    assert [node.memory_bytes for node in allocated.nodes] == memory


@pytest.mark.parametrize(
    ("groups", "memory"),
    [
        ("Nodes=n[1-3] CPU_IDs=0-7 Mem=0 GRES=", {}),
        ("Nodes=n[1-3] CPU_IDs=0-7 Mem=9 GRES=", {"n1": 9 * MIB, "n2": 9 * MIB, "n3": 9 * MIB}),
        (
            "NumNodes=3 Nodes=n[1-2] CPU_IDs=0-7 Mem=9 GRES= Nodes=n3 CPU_IDs=0 Mem=5 GRES=",
            {"n1": 9 * MIB, "n2": 9 * MIB, "n3": 5 * MIB},
        ),
        (
            "Nodes=n[1-2] CPU_IDs=0-7 Mem=9 GRES= Nodes=n3 CPU_IDs=0 Mem=0 GRES=",
            {"n1": 9 * MIB, "n2": 9 * MIB},
        ),
    ],
)
def test_memory_of_groups_of_nodes(groups, memory):
    names = {"n[1-2]": "n1\nn2\n", "n[1-3]": "n1\nn2\nn3\n"}
    cpus = {"n1": 8, "n2": 8, "n3": 1}
    assert slurm.memory_limits({}, groups, cpus, lambda arguments: names[arguments[2]]) == memory


def test_counts_of_other_nodes_than_named_are_refused():
    with pytest.raises(AllocationError, match=r"names 2 nodes \(n\[1-2\]\), CPUs of 3 and tasks of 2"):
        slurm.slurm_allocation(ENVIRON | {"SLURM_JOB_CPUS_PER_NODE": "8(x3)"}, ask)


def test_tasks_that_nobody_asked_for_do_not_count():
    environ = {name: value for name, value in ENVIRON.items() if name != "SLURM_NTASKS"}
    assert [node.tasks for node in slurm.slurm_allocation(environ, ask).nodes] == [None, None]
    counted = slurm.slurm_allocation(environ | {"SLURM_NTASKS_PER_NODE": "4"}, ask)
    assert [node.tasks for node in counted.nodes] == [4, 3]


def test_a_task_of_an_array_is_refused():
    """The variables alone would not do: a job that a task of an array submits inherits them."""
    slurm.slurm_allocation(ENVIRON | {"SLURM_ARRAY_JOB_ID": "70"}, ask)
    with pytest.raises(UsageError, match=r"job 77 is a task of the array 70.*scancel 70"):
        slurm.slurm_allocation(ENVIRON, lambda arguments: ask(arguments).replace(" ", " ArrayJobId=70 ", 1))


def test_missing_variable_is_named():
    with pytest.raises(AllocationError, match="'SLURM_JOB_NODELIST' is not"):
        slurm.slurm_allocation({"SLURM_JOB_ID": "1"}, ask)


def test_outside_any_job():
    with pytest.raises(AllocationError, match="this is no batch job"):
        allocation.read({})


@pytest.mark.parametrize(
    ("text", "counts"), [("8", [8]), ("8(x3)", [8, 8, 8]), ("8(x2),4", [8, 8, 4]), ("1,2", [1, 2])]
)
def test_compressed_counts(text, counts):
    assert slurm.compressed_counts(text) == counts


@pytest.mark.parametrize("text", ["", "x", "8(2)", "8,,8"])
def test_no_compressed_counts(text):
    with pytest.raises(AllocationError):
        slurm.compressed_counts(text)


def job(*nodes, per_task=None):
    return Allocation("slurm", "1", "k", nodes, per_task)


def size(allocated, memory_bytes=20 * GIB, workers=None, cpus=None, stage_bytes=None):
    """Workers, threads per worker and memory limit of each node."""
    memory = dict.fromkeys(allocated.node_names, memory_bytes)
    sizing = allocation.size_workers(allocated, memory, workers, cpus, stage_bytes)
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
    sizing = allocation.size_workers(
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


def test_local_job_names_this_process_for_good():
    job = local.local_allocation()
    assert job.job_key == f"local-{job.job_id}"
    assert job.job_id.endswith(f"-{os.getpid()}-{process_start(os.getpid())}")


def test_memory_that_the_staged_environment_uses_up():
    message = (
        r"1 GiB of memory on n2, less the 960 MiB of the staged environment, is too little for 1 workers\. "
        "Ask for more with --mem"
    )
    with pytest.raises(UsageError, match=message):
        size(job(Node("n1", 1), Node("n2", 1)), GIB, 1, 1, {"n2": 960 * MIB})
