"""Room of the ranks: the programs between the MPI launcher and dask-mpi. They run on every node, from the staged prefix.

`stand_in`, `fork_server` and `run_dask_mpi` run as files, by their paths; nothing imports them. `stand_in` imports no
module of mpiboot, `run_dask_mpi` only `common.faults`, and `fork_server` `envpack.common` and `protocol.node`.
"""
