"""Closes MPI's listening sockets in a rank once all ranks have started.

A rank uses MPI only to learn its number and to wait until the scheduler listens. But UCX, below MPICH, goes on accepting
connections in a thread of its own, from anyone, and keeps them: a stranger could use up the scheduler's descriptors.
Open MPI only leaves them in the kernel's queue. `preloads.secure` imports this module; it imports tornado.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import sys
from typing import Any

from tornado.ioloop import IOLoop

logger = logging.getLogger(__name__)

# Rank 0 leaves MPI's barrier before its first worker registers, the others before their nanny starts; what is on its way
# to other ranks then needs no new connection. The delay is a margin.
CLOSE_AFTER_S = 5.0


def listening_sockets() -> dict[int, int]:
    """Return descriptor and inode of each listening TCP socket of a process that uses MPI; none for another."""
    found: dict[int, int] = {}
    if "mpi4py.MPI" not in sys.modules:  # a worker below its nanny
        return found
    for descriptor in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        with contextlib.suppress(OSError):  # closed since
            status = os.fstat(descriptor)
            if not stat.S_ISSOCK(status.st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as one:
                tcp = one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM
                if tcp and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    found[descriptor] = status.st_ino
    return found


def close_listening(sockets: dict[int, int]) -> None:
    """Close listening sockets that belong to a library.

    The descriptors stay in use, for nothing: the library may close them later, and must not hit another file.

    Parameters
    ----------
    sockets : dict of int to int
        The result of `listening_sockets`; descriptors that have another inode now are left alone.
    """
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        for descriptor, inode in sockets.items():
            with contextlib.suppress(OSError):  # closed since
                if os.fstat(descriptor).st_ino == inode:
                    os.dup2(nothing, descriptor, inheritable=False)
    finally:
        os.close(nothing)


def close_when_started(server: Any, sockets: dict[int, int]) -> None:
    """Close MPI's listening sockets once all ranks have started.

    Parameters
    ----------
    server : distributed.Scheduler, distributed.Nanny or distributed.Worker
        The rank's server; its event loop runs.
    sockets : dict of int to int
        What listened before Dask did.
    """

    def close() -> None:
        if getattr(server, "workers", True):  # a scheduler without a worker waits
            close_listening(sockets)
            logger.debug("closed %d listening sockets of MPI", len(sockets))
        else:
            loop.call_later(CLOSE_AFTER_S, close)

    loop = IOLoop.current()
    if sockets:
        loop.call_later(CLOSE_AFTER_S, close)
