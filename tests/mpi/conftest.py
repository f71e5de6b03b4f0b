"""Ranks start with the variables that mpiboot gives its ranks; MPI reads them when mpi4py.MPI is imported."""

import os

from mpiboot.protocol import variables

os.environ.update(variables.MPI_TCP_ONLY)
os.environ.update({variables.UCX_TRANSPORTS: "tcp,self,sm", variables.UCX_DEVICES: "lo"})
