"""Room of the ranks: from the launcher's start of a rank to dask-mpi. It runs on every node, from the staged prefix.

`stand_in` and `fork_server` run as files, by their paths; nothing imports them. `stand_in` imports no module of
mpiboot; `fork_server` imports `envpack.common` and `protocol.node`.
"""
