"""The script of every rank: it does what the command `dask-mpi` does, wherever the package dask-mpi lies."""

from dask_mpi.cli import main

if __name__ == "__main__":
    main()
