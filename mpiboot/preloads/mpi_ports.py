"""Closes MPI's listening sockets in a rank once all ranks have started.

A rank uses MPI only to learn its number and to wait until the scheduler listens. But UCX, MPICH's network library, goes
on accepting connections from anyone in a thread of its own, and keeps them: a stranger could use up the scheduler's
descriptors. With Open MPI, such connections only stay in the kernel's queue.

`preloads.secure` imports this module. It imports tornado.
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

# By this time all ranks have left MPI's barrier: rank 0 before its first worker registers, the others before their nanny
# starts. Messages still on their way to other ranks need no new connection. The delay is a margin.
CLOSE_AFTER_S = 5.0


def listening_sockets() -> dict[int, int]:
    """Return the inode of each listening TCP socket of this process, by descriptor; none if it does not use MPI."""
    found: dict[int, int] = {}
    if "mpi4py.MPI" not in sys.modules:  # the process of a worker, which its nanny has started
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

    Their descriptors then refer to /dev/null, and stay open: the library may close them later, and their numbers must not
    belong to other files by then.

    Parameters
    ----------
    sockets : dict of int to int
        The result of `listening_sockets`. A descriptor that has another inode now is not touched.
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
    """Close MPI's listening sockets once all ranks have left MPI's barrier.

    Parameters
    ----------
    server : distributed.Scheduler, distributed.Nanny or distributed.Worker
        The rank's server; its event loop runs.
    sockets : dict of int to int
        The result of `listening_sockets` before Dask opened its own.
    """

    def close() -> None:
        if getattr(server, "workers", True):  # a scheduler waits for its first worker
            close_listening(sockets)
            logger.debug("closed %d listening sockets of MPI", len(sockets))
        else:
            loop.call_later(CLOSE_AFTER_S, close)

    loop = IOLoop.current()
    if sockets:
        loop.call_later(CLOSE_AFTER_S, close)
