"""First preload of scheduler, worker and nanny (`protocol.secrets.GUARD_PRELOAD`): importing it guards the HTTP server.

distributed imports preloads before it opens a port, and an error here ends the rank. What listens then is MPI's.
"""

import os
from pathlib import Path
from typing import Any

from mpiboot.errors import SecurityError
from mpiboot.preloads import guard, mpi_ports
from mpiboot.protocol.variables import JOB_DIRECTORY_VARIABLE

if JOB_DIRECTORY_VARIABLE not in os.environ:
    raise SecurityError(
        f"{JOB_DIRECTORY_VARIABLE} is not set: a rank without its TLS files refuses to start",
        "Let no script in the environment's etc/conda/activate.d unset it, and submit the job again",
    )
guard.arm(Path(os.environ[JOB_DIRECTORY_VARIABLE]))
_MPI_SOCKETS = mpi_ports.listening_sockets()


async def dask_setup(server: Any) -> None:
    """Let MPI listen no longer than the ranks need it; distributed calls this when scheduler, worker or nanny starts."""
    mpi_ports.close_when_started(server, _MPI_SOCKETS)
