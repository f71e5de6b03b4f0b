import time
from pathlib import Path

import pytest

from mpiboot.batch.allocation import Allocation, Launch, Node, Placement
from mpiboot.batch.slurm import allocation as slurm
from mpiboot.batch.slurm.allocation import SYSTEM
from mpiboot.errors import BatchAwayError, BatchError

TWO = Allocation("slurm", "7", "slurm-c-7", (Node("n1", 8), Node("n2", 8)))


def test_a_program_on_every_node_has_all_its_cpus():
    """A number of CPUs would be exact (srun(1), --exact)."""
    assert SYSTEM.on_every_node(TWO, ["/e/bin/python", "-m", "agent"]) == [
        *("srun", "--overlap", "--mem=0", "--export=ALL", "--mpi=none"),
        *("--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1"),
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
    ("mpi", "error", "plugin"),
    [
        ("openmpi", None, "pmix"),
        ("intelmpi", None, "pmix"),
        (None, None, "pmix"),
        ("mpich", None, "pmi2"),
        ("openmpi", BatchError("no such plugin", "See: srun --mpi=list"), "pmi2"),
    ],
)
def test_launch(mpi, error, plugin):
    place = Placement(("n1", "n2"), (5, 4))
    assert SYSTEM.launch(place, Path("/j/hosts"), ["rank", "a b"], mpi, answering(error)) == Launch(
        [
            *("srun", "--overlap", "--mem=0", "--export=ALL", f"--mpi={plugin}", "--ntasks=9"),
            *("--distribution=arbitrary", "--overcommit", "--cpu-bind=none"),
            *("--no-kill", "--kill-on-bad-exit=0", "rank", "a b"),
        ],
        "n1\n" * 5 + "n2\n" * 4,
        {"SLURM_HOSTFILE": "/j/hosts"},
    )


def test_a_slurm_that_does_not_answer_is_no_missing_plugin():
    with pytest.raises(BatchAwayError):
        slurm.pmi_plugin("openmpi", answering(BatchAwayError("timed out", "See: sinfo")))


@pytest.mark.parametrize(
    ("end", "seconds"),
    [("2026-11-22T10:00:00", time.mktime((2026, 11, 22, 10, 0, 0, 0, 0, -1))), ("Unknown", None)],
)
def test_end_time(end, seconds):
    outputs = {"job": f"JobId=7 EndTime={end} X=1", "config": "Configuration data as of Unknown"}
    assert SYSTEM.end_time(TWO, lambda command, **_: outputs[command[2]]) == seconds


# What srun, sbcast, scancel and scontrol read (srun(1), INPUT ENVIRONMENT VARIABLES, and likewise), and what describes
# another job or a step.
STRANGE = [
    *("SLURM_LABELIO", "SLURM_KILL_BAD_EXIT", "SLURM_NO_KILL", "SLURM_DISTRIBUTION", "SLURM_HINT"),
    *("SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_EXCLUSIVE", "SLURM_EXACT", "SLURM_WHOLE"),
    *(
        "SLURM_STEP_GRES",
        "SLURM_GPUS",
        "SLURM_GPUS_PER_TASK",
        "SLURM_NTASKS_PER_CORE",
        "SLURM_THREADS_PER_CORE",
    ),
    *("SLURM_MULTI_PROG", "SLURM_STDOUTMODE", "SLURM_UNBUFFEREDIO", "SLURM_WAIT", "SLURM_TIMELIMIT"),
    *("SLURM_IMMEDIATE", "SLURM_RESV_PORTS", "SLURM_NETWORK", "SLURM_THREADS", "SLURM_HOSTFILE"),
    *("SLURM_OPEN_MODE", "SLURM_PTY_PORT", "SLURM_EXPORT_ENV", "SLURM_CPUS_PER_TASK", "SLURM_NTASKS"),
    *("SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_STEP_ID"),
    *(
        "SLURM_STEP_NODELIST",
        "SLURM_HET_SIZE",
        "SLURM_JOB_CPUS_PER_NODE_PACK_GROUP_0",
        "SLURM_OVERCOMMIT",
        "SLURM_MPI_TYPE",
    ),
    *("SLURM_CLUSTERS", "SLURM_WORKING_CLUSTER", "SLURM_CONSTRAINT", "SLURM_CORE_SPEC", "SLURM_SPREAD_JOB"),
    *("SLURM_TIME_FORMAT", "SRUN_CPUS_PER_TASK", "SRUN_EXPORT_ENV", "SBCAST_FORCE", "SBCAST_EXCLUDE"),
    *("SCANCEL_INTERACTIVE", "SCANCEL_USER", "SCONTROL_FEDERATION"),
]
KEPT = {
    "SLURM_CONF": "/c",
    "SLURM_CONF_SERVER": "h",
    "SLURM_JWT": "t",
    "PATH": "/bin",
    "SLURMD_NODENAME": "n1",
}


def test_no_variable_changes_what_starts_programs_on_the_nodes():
    environ = (
        dict.fromkeys(STRANGE, "1") | KEPT | {"SLURM_JOB_ID": "8", "SLURM_NODELIST": "x", "SLURM_NNODES": "9"}
    )
    assert SYSTEM.job_environment(TWO, environ) == {
        **KEPT,
        **{"SLURM_JOB_ID": "7", "SLURM_JOBID": "7"},
        **{"SLURM_JOB_NODELIST": "n1,n2", "SLURM_NODELIST": "n1,n2"},
        **{"SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2"},
        **{"SLURM_JOB_CPUS_PER_NODE": "8,8", "SLURM_TASKS_PER_NODE": "8,8"},
        "SLURM_OVERLAP": "1",
    }
