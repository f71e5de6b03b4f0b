"""This host as an allocation of one node.

Boot finds `SYSTEM` by the batch system's name; it imports what boot may import at its start.
"""

import os
import socket
from collections.abc import Mapping

from mpiboot.batch.allocation import Allocation, AllocationSystem, Node, Run
from mpiboot.common.processes import process_start


class LocalAllocation(AllocationSystem):
    """This host, with the CPUs and memory that this process may use."""

    def read(self, environ: Mapping[str, str], run: Run) -> Allocation:
        host = socket.gethostname()
        job_id = f"{host}-{os.getpid()}-{process_start(os.getpid())}"
        return Allocation("local", job_id, f"local-{job_id}", (Node(host, len(os.sched_getaffinity(0))),))


SYSTEM = LocalAllocation()
