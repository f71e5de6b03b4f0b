import time

import pytest

from mpiboot.batch import registry
from mpiboot.batch.slurm.text import plain_environment, slurm_time


@pytest.mark.parametrize(
    ("name", "to_sbatch", "to_queries"),
    [
        # Where Slurm is, and who asks.
        ("SLURM_CONF", True, True),
        ("SLURM_CONF_SERVER", True, True),
        ("SLURM_JWT", True, True),
        ("SLURM_DEBUG_FLAGS", True, True),
        # What the user asks of every submission.
        ("SBATCH_ACCOUNT", True, True),
        ("SBATCH_PARTITION", True, True),
        ("SBATCH_EXPORT", True, True),
        # The job in which a submit is typed.
        ("SLURM_JOB_ID", False, True),
        ("SLURM_JOBID", False, True),
        ("SLURM_CPUS_PER_TASK", False, True),
        ("SLURM_MEM_PER_NODE", False, True),
        ("SLURM_NTASKS", False, True),
        ("SLURM_EXPORT_ENV", False, True),
        ("SLURM_HOSTFILE", False, True),
        # What changes answers, or which jobs are meant.
        ("SLURM_CLUSTERS", False, False),
        ("SLURM_TIME_FORMAT", False, False),
        ("SLURM_BITSTR_LEN", False, False),
        *(
            (f"SQUEUE_{name}", True, False)
            for name in ("FORMAT", "FORMAT2", "STATES", "USERS", "PARTITION", "SORT")
        ),
        *((f"SACCT_{name}", True, False) for name in ("FORMAT", "FEDERATION", "LOCAL")),
        *((f"SCANCEL_{name}", True, False) for name in ("INTERACTIVE", "STATE", "BATCH", "USER")),
        *((f"SCONTROL_{name}", True, False) for name in ("ALL", "FEDERATION")),
        *((f"SINFO_{name}", True, False) for name in ("FORMAT", "PARTITION")),
    ],
)
def test_which_variables_reach_which_commands(name, to_sbatch, to_queries):
    assert registry.describes_a_job(name) is not to_sbatch
    assert (name in plain_environment({name: "x"})) is to_queries


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-22T10:00:00", time.mktime((2026, 11, 22, 10, 0, 0, 0, 0, -1))),
        ("1790000000", 1790000000.0),
        *(
            (text, None)
            for text in (None, "", "Unknown", "N/A", "None", "2026-11-22", "10:00:00", "22 Nov 10:00")
        ),
    ],
)
def test_times(text, seconds):
    assert slurm_time(text) == seconds
