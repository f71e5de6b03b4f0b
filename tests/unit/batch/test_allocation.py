import os
import time

import pytest

from mpiboot.batch import allocation
from mpiboot.batch.allocation import GIB, MIB, Allocation, Sizing
from mpiboot.batch.local import allocation as local
from mpiboot.batch.slurm import allocation as slurm
from mpiboot.common.processes import process_start
from mpiboot.errors import AllocationError, UsageError

ENVIRON = {
    "SLURM_JOB_ID": "77",
    "SLURM_CLUSTER_NAME": "big",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_CPUS_PER_NODE": "8,6",
    "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_NTASKS_PER_NODE": "4",
}
JOB = "JobId=77 JobName=a EndTime=2026-11-22T10:00:00 Nodes=n1 CPU_IDs=0-7 Mem=4096 GRES= Nodes=n2 CPU_IDs=0-5 Mem=2048"


def ask(arguments):
    return {"hostnames": "n1\nn2\n", "job": JOB}[arguments[1]]


def test_slurm():
    assert slurm.slurm_allocation(ENVIRON, ask) == Allocation(
        batch_system="slurm",
        job_id="77",
        job_key="slurm-big-77",
        nodes=("n1", "n2"),
        cpus_per_node=6,
        memory_per_node_bytes=2048 * MIB,
        tasks_per_node=4,
        cpus_per_task=None,
        end_time=time.mktime((2026, 11, 22, 10, 0, 0, 0, 0, -1)),
        restart_count=0,
    )


@pytest.mark.parametrize(
    ("more", "memory"),
    [
        ({"SLURM_MEM_PER_NODE": "1000"}, 1000 * MIB),
        ({"SLURM_MEM_PER_CPU": "100"}, 600 * MIB),
        ({"SLURM_MEM_PER_NODE": "0"}, 2048 * MIB),
    ],
)
def test_slurm_memory(more, memory):
    assert slurm.slurm_allocation(ENVIRON | more, ask).memory_per_node_bytes == memory


def test_slurm_without_any_memory_limit():
    assert slurm.slurm_memory_bytes({}, "Nodes=n1 CPU_IDs=0-7 Mem=0 GRES=", 8) is None


def test_tasks_that_nobody_asked_for_do_not_count():
    environ = {name: value for name, value in ENVIRON.items() if name != "SLURM_NTASKS_PER_NODE"}
    assert slurm.slurm_allocation(environ, ask).tasks_per_node is None
    assert slurm.slurm_allocation(environ | {"SLURM_NTASKS": "8"}, ask).tasks_per_node == 4


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


def given(cpus, tasks=None, per_task=None):
    return Allocation("slurm", "1", "k", ("n1", "n2"), cpus, None, tasks, per_task)


@pytest.mark.parametrize(
    ("job", "workers", "cpus", "expected"),
    [
        (given(8), None, None, Sizing(2, 4, 9 * GIB)),
        (given(3), None, None, Sizing(1, 3, 18 * GIB)),
        (given(9), None, None, Sizing(2, 4, 9 * GIB)),
        (given(8, 4), None, None, Sizing(4, 2, 18 * GIB // 4)),
        (given(8, 2, 4), None, None, Sizing(2, 4, 9 * GIB)),
        (given(8), None, 2, Sizing(4, 2, 18 * GIB // 4)),
        (given(8), 3, None, Sizing(3, 2, 6 * GIB)),
        (given(8, 4), 1, None, Sizing(1, 8, 18 * GIB)),
    ],
)
def test_workers_fit_in_what_was_given(job, workers, cpus, expected):
    sizing = allocation.size_workers(job, 20 * GIB, workers, cpus)
    assert sizing == expected
    assert sizing.workers_per_node * sizing.threads_per_worker <= job.cpus_per_node


def test_a_tenth_is_left_to_the_scheduler_of_a_small_node():
    assert allocation.size_workers(given(1), 10 * GIB, 1, 1).memory_limit_bytes == 9 * GIB


def test_more_than_given_is_refused():
    with pytest.raises(UsageError, match="need 12 CPUs; the job has 8 on n1"):
        allocation.size_workers(given(8), GIB, 3, 4)


def test_local_job_names_this_process_for_good():
    job = local.local_allocation()
    assert job.job_key == f"local-{job.job_id}"
    assert job.job_id.endswith(f"-{os.getpid()}-{process_start(os.getpid())}")


def test_memory_that_the_stage_uses_up():
    message = (
        r"1 GiB of memory per node, of which the stage takes 960 MiB, are too little for 1 workers\. "
        "Ask for more with --mem"
    )
    with pytest.raises(UsageError, match=message):
        allocation.size_workers(given(1), GIB, 1, 1, 960 * 1024**2)
