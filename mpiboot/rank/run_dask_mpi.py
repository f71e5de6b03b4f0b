"""The script of every rank: it does what the command `dask-mpi` does, wherever the package dask-mpi lies."""

import os
import sys

from dask_mpi.cli import main

from mpiboot.common.faults import one_line

if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.exit(f"mpiboot: a rank on {os.uname().nodename} has failed: {one_line(error)}")
