"""Every word of a batch system is in `mpiboot/batch/<system>/`: a new one must not need a change anywhere else."""

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2]
WORDS = re.compile(
    # Commands, daemons, variables and options,
    r"\b(sbatch|srun|squeue|scontrol|sacct|scancel|sinfo|sbcast|slurmctld|slurmd|slurmstepd|salloc"
    r"|SLURM_?\w*|SLURMD_\w*|SBATCH_?\w*|SQUEUE_\w*|SACCT_\w*|KillWait|--no-kill|--kill-on-bad-exit"
    # the batch system's name,
    r"|[Ss]lurm\w*"
    # and states of jobs.
    r"|PENDING|CONFIGURING|REQUEUED?|RUNNING|COMPLETING|SUSPENDED|COMPLETED|CANCELLED|FAILED|TIMEOUT|NODE_FAIL"
    r"|PREEMPTED|OUT_OF_MEMORY|BOOT_FAIL|DEADLINE|UNKNOWN)\b"
)
ALLOWED = {
    # The registry's one line for each batch system.
    "mpiboot/batch/registry.py": {"slurm"},
    # Options take the names and the forms of sbatch's: their help says which one is meant.
    "mpiboot/config.py": {"sbatch"},
    "mpiboot/common/units.py": {"sbatch"},
    "envpack/common/units.py": {"sbatch"},
}


def found(text):
    return {match[0] for match in WORDS.finditer(text)}


def modules():
    """The modules outside the batch systems' folders."""
    for path in sorted([*SOURCES.glob("mpiboot/**/*.py"), *SOURCES.glob("envpack/**/*.py")]):
        name = str(path.relative_to(SOURCES))
        if not re.match(r"mpiboot/batch/\w+/", name):
            yield name


@pytest.mark.parametrize("name", list(modules()))
def test_no_other_module_speaks_a_batch_systems_words(name):
    """In strings, names, comments and docstrings alike."""
    assert found((SOURCES / name).read_text()) - ALLOWED.get(name, set()) == set()


def test_what_is_allowed_is_needed():
    for name, words in ALLOWED.items():
        assert words <= found((SOURCES / name).read_text()), name


def test_the_words_are_found_where_they_belong():
    text = "".join(path.read_text() for path in SOURCES.glob("mpiboot/batch/slurm/*.py"))
    assert {"sbatch", "squeue", "PENDING", "SBATCH_EXPORT"} <= found(text)
