"""The fixtures of all tests. Imported by name: `pytest_plugins = ["fixtures"]` would be pytest's own of that name."""

from fixtures import (
    alice,
    conda_env_small,
    leaves_nothing,
    minicluster,
    mpich_env,
    patient_slurm,
    pytest_runtest_makereport,
    second,
)

__all__ = [
    "alice",
    "conda_env_small",
    "leaves_nothing",
    "minicluster",
    "mpich_env",
    "patient_slurm",
    "pytest_runtest_makereport",
    "second",
]
