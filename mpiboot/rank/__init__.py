"""Room of the ranks: the programs between the MPI launcher and dask-mpi. They run on every node, from the staged prefix.

`stand_in` and `fork_server` run as files, by their paths; nothing imports them. `stand_in` imports no module of
mpiboot; `fork_server` imports `envpack.common` and `protocol.node`.
"""
