"""Inside each nanny: its worker must not find the variables of the nanny's own MPI rank.

A task that imports mpi4py would take itself for that rank, and wait for ever in MPI_Init.
"""

import os

from distributed import Nanny

MPI_PREFIXES = ("PMI", "OMPI_", "PRTE_", "HYDRA_", "HYDI_", "MPIR_", "MPI_LOCAL")


def dask_setup(nanny: Nanny) -> None:
    for name in [name for name in os.environ if name.startswith(MPI_PREFIXES)]:
        del os.environ[name]
