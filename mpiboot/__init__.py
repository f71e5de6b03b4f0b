"""One batch job, all its nodes, one connected Dask client.

Submit a job with `mpiboot.submit`, connect to it with `mpiboot.connect`, or do both with `mpiboot.MPICluster`.

Importing this package imports only the errors; the other names are imported when they are first used, since
`mpiboot boot` starts from a slow shared file system and must not pay for distributed.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from mpiboot.errors import (
    AllocationError,
    BatchAwayError,
    BatchError,
    ClusterLostError,
    DeadlineError,
    EnvironmentUnfitError,
    JobEndedError,
    LaunchError,
    MpibootError,
    RendezvousError,
    SecurityError,
    StageError,
    UsageError,
)

if _TYPE_CHECKING:
    from mpiboot.client.cluster import MPICluster
    from mpiboot.client.connect import connect
    from mpiboot.client.job import Job
    from mpiboot.client.submit import submit

    __version__: str

__all__ = [
    "AllocationError",
    "BatchAwayError",
    "BatchError",
    "ClusterLostError",
    "DeadlineError",
    "EnvironmentUnfitError",
    "Job",
    "JobEndedError",
    "LaunchError",
    "MPICluster",
    "MpibootError",
    "RendezvousError",
    "SecurityError",
    "StageError",
    "UsageError",
    "connect",
    "submit",
]

_MODULES = {
    "Job": "mpiboot.client.job",
    "MPICluster": "mpiboot.client.cluster",
    "connect": "mpiboot.client.connect",
    "submit": "mpiboot.client.submit",
}


def __getattr__(name: str) -> object:
    import importlib

    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("mpiboot")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'mpiboot' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
