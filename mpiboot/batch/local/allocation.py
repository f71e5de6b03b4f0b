"""This host as an allocation of one node."""

import os
import socket

from mpiboot.batch.allocation import Allocation, Node
from mpiboot.common.processes import process_start


def local_allocation() -> Allocation:
    """This host, as far as this process may use it."""
    host = socket.gethostname()
    job_id = f"{host}-{os.getpid()}-{process_start(os.getpid())}"
    return Allocation("local", job_id, f"local-{job_id}", (Node(host, len(os.sched_getaffinity(0))),))
