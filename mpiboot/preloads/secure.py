"""First preload of scheduler, worker and nanny (`protocol.secrets.GUARD_PRELOAD`): importing it guards the HTTP server.

distributed imports preloads before it opens a port, so all sockets that listen at that time belong to MPI. An error here
ends the rank. No other module imports this one; it imports the other modules of this room.
"""

import os
from pathlib import Path
from typing import Any

from mpiboot.errors import SecurityError
from mpiboot.preloads import guard, log_lines, mpi_ports
from mpiboot.protocol.variables import JOB_DIRECTORY_VARIABLE

if JOB_DIRECTORY_VARIABLE not in os.environ:
    raise SecurityError(
        f"{JOB_DIRECTORY_VARIABLE} is not set: a rank without its TLS files refuses to start",
        "Let no script in the environment's etc/conda/activate.d unset it, and submit the job again",
    )
guard.arm(Path(os.environ[JOB_DIRECTORY_VARIABLE]))
log_lines.install()
_MPI_SOCKETS = mpi_ports.listening_sockets()


async def dask_setup(server: Any) -> None:
    """Close MPI's listening sockets once no rank needs them. distributed calls this when it starts a server."""
    mpi_ports.close_when_started(server, _MPI_SOCKETS)
