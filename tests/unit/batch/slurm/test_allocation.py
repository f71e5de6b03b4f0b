import time
from pathlib import Path

import pytest

from mpiboot.batch.allocation import Allocation, Launch, Node, Placement
from mpiboot.batch.slurm import allocation as slurm
from mpiboot.batch.slurm.allocation import MIB, SYSTEM
from mpiboot.errors import AllocationError, BatchAwayError, BatchError, UsageError

ENVIRON = {
    "SLURM_JOB_ID": "77",
    "SLURM_CLUSTER_NAME": "big",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_CPUS_PER_NODE": "8,6",
    "SLURM_TASKS_PER_NODE": "4,3",
    "SLURM_NTASKS": "7",
}
JOB = "JobId=77 JobName=a EndTime=2026-11-22T10:00:00 Nodes=n1 CPU_IDs=0-7 Mem=4096 GRES= Nodes=n2 CPU_IDs=0-5 Mem=2048"


def scontrol(command, **_):
    assert command[:2] == ["scontrol", "show"]
    return {"hostnames": "n1\nn2\n", "job": JOB}[command[2]]


def test_slurm():
    assert SYSTEM.read(ENVIRON, scontrol) == Allocation(
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
    allocated = SYSTEM.read(ENVIRON | more, scontrol)
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
    assert slurm.memory_limits({}, groups, cpus, lambda node_list: names[node_list].split()) == memory


def test_counts_of_other_nodes_than_named_are_refused():
    with pytest.raises(AllocationError, match=r"names 2 nodes \(n\[1-2\]\), CPUs of 3 and tasks of 2"):
        SYSTEM.read(ENVIRON | {"SLURM_JOB_CPUS_PER_NODE": "8(x3)"}, scontrol)


def test_tasks_that_nobody_asked_for_do_not_count():
    environ = {name: value for name, value in ENVIRON.items() if name != "SLURM_NTASKS"}
    assert [node.tasks for node in SYSTEM.read(environ, scontrol).nodes] == [None, None]
    counted = SYSTEM.read(environ | {"SLURM_NTASKS_PER_NODE": "4"}, scontrol)
    assert [node.tasks for node in counted.nodes] == [4, 3]


def test_a_task_of_an_array_is_refused():
    """The variables alone would not do: a job that a task of an array submits inherits them."""
    SYSTEM.read(ENVIRON | {"SLURM_ARRAY_JOB_ID": "70"}, scontrol)
    with pytest.raises(UsageError, match=r"job 77 is a task of the array 70.*scancel 70"):
        SYSTEM.read(ENVIRON, lambda *words, **_: scontrol(*words).replace(" ", " ArrayJobId=70 ", 1))


def test_missing_variable_is_named():
    with pytest.raises(AllocationError, match="'SLURM_JOB_NODELIST' is not"):
        SYSTEM.read({"SLURM_JOB_ID": "1"}, scontrol)


@pytest.mark.parametrize(
    ("text", "counts"), [("8", [8]), ("8(x3)", [8, 8, 8]), ("8(x2),4", [8, 8, 4]), ("1,2", [1, 2])]
)
def test_compressed_counts(text, counts):
    assert slurm.compressed_counts(text) == counts


@pytest.mark.parametrize("text", ["", "x", "8(2)", "8,,8"])
def test_no_compressed_counts(text):
    with pytest.raises(AllocationError):
        slurm.compressed_counts(text)


TWO = Allocation("slurm", "7", "slurm-c-7", (Node("n1", 8), Node("n2", 8)))
UNEQUAL = Allocation("slurm", "7", "slurm-c-7", (Node("n1", 8), Node("n2", 1)))


@pytest.mark.parametrize(("allocation", "cpus"), [(TWO, ("--cpus-per-task", "8")), (UNEQUAL, ())])
def test_a_program_on_every_node_has_all_its_cpus(allocation, cpus):
    assert SYSTEM.on_every_node(allocation, ["/e/bin/python", "-m", "agent"]) == [
        *("srun", "--overlap", "--mem=0", "--export=ALL"),
        *("--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1", *cpus),
        *("--cpu-bind=none", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"),
        *("/e/bin/python", "-m", "agent"),
    ]


def test_cancel_and_carry():
    assert SYSTEM.cancel_command("7") == ["scancel", "7"]
    assert SYSTEM.carry_command(Path("/j/a"), Path("/tmp/a")) == ["sbcast", "--force", "/j/a", "/tmp/a"]


def answering(error=None):
    def run(command, **_):
        assert command == [
            *("srun", "--overlap", "--mem=0", "--export=ALL"),
            *("--mpi=pmix", "--nodes=1", "--ntasks=1", "true"),
        ]
        if error:
            raise error
        return ""

    return run


@pytest.mark.parametrize(
    ("error", "plugin"), [(None, "pmix"), (BatchError("no such plugin", "See: srun --mpi=list"), "pmi2")]
)
def test_launch(error, plugin):
    place = Placement(("n1", "n2"), (5, 4))
    assert SYSTEM.launch(place, Path("/j/hosts"), ["rank", "a b"], answering(error)) == Launch(
        [
            *("srun", "--overlap", "--mem=0", "--export=ALL", f"--mpi={plugin}", "--ntasks=9", "--nodes=2"),
            *("--distribution=arbitrary", "--overcommit", "--cpu-bind=none"),
            *("--no-kill", "--kill-on-bad-exit=0", "rank", "a b"),
        ],
        "n1\n" * 5 + "n2\n" * 4,
        {"SLURM_HOSTFILE": "/j/hosts"},
    )


def test_a_slurm_that_does_not_answer_is_no_missing_plugin():
    with pytest.raises(BatchAwayError):
        slurm.pmi_plugin(answering(BatchAwayError("timed out", "See: sinfo")))


@pytest.mark.parametrize(
    ("end", "seconds"),
    [("2026-11-22T10:00:00", time.mktime((2026, 11, 22, 10, 0, 0, 0, 0, -1))), ("Unknown", None)],
)
def test_end_time(end, seconds):
    assert SYSTEM.end_time("77", lambda *_, **__: f"JobId=77 EndTime={end} X=1") == seconds
