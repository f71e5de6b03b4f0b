"""Room of the ranks: the programs between the MPI launcher and dask-mpi. They run on every node, from the staged prefix.

`stand_in`, `fork_server` and `run_dask_mpi` run as files, by their paths; nothing imports them. `stand_in` and
`run_dask_mpi` import no module of mpiboot; `fork_server` imports `envpack.common` and `protocol.node`.
"""
