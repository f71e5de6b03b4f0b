"""One batch job, all its nodes, one connected Dask client.

The names below are imported when first used: `mpiboot boot` runs on a slow shared file system and must not pay
for `distributed`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpiboot.client.cluster import MPICluster as MPICluster
    from mpiboot.client.connect import connect as connect
    from mpiboot.client.job import Job as Job
    from mpiboot.client.submit import submit as submit

_HOMES = {
    "connect": "mpiboot.client.connect",
    "MPICluster": "mpiboot.client.cluster",
    "Job": "mpiboot.client.job",
    "submit": "mpiboot.client.submit",
}
__all__ = ["Job", "MPICluster", "connect", "submit"]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("mpiboot")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mpiboot' has no attribute {name!r}")
