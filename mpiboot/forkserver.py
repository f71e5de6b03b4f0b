"""What the ranks of one node are forked from: dask-mpi and distributed are imported once, and lie in memory once.

Started by the node's agent (adopt.py), which hands on what each stand-in asked for: a length, JSON, and with the first
byte the stand-in's connection and MPI's. Each child becomes a rank, and runs dask-mpi as its own interpreter would.
"""

import contextlib
import fcntl
import gc
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

from mpiboot.adopt import DESCRIPTORS_MAX, LENGTH_BYTES


def main() -> None:
    # As if the rank's own script had been started.
    sys.path[0] = str(Path(sys.argv[2]).parent)
    agent = socket.socket(fileno=int(sys.argv[1]))
    import dask_mpi.cli  # noqa: F401

    gc.freeze()  # else the first collection would copy what all share
    if rank := serve(agent):
        become(*rank)
        runpy.run_path(sys.argv[0], run_name="__main__")


def serve(agent: socket.socket) -> "tuple[dict[str, Any], list[int]] | None":
    """Fork ranks, and tell their stand-ins how they end, until the agent asks for no more and all have ended.

    Returns
    -------
    tuple[dict, list of int] or None
        In a rank: its orders, and MPI's descriptors. None: in the server, at the end.
    """
    stand_ins: dict[int, socket.socket] = {}
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # its byte in the pipe wakes us
    with selectors.DefaultSelector() as selector:
        for end in (agent, woken):
            selector.register(end, selectors.EVENT_READ)
        while stand_ins or agent in selector.get_map():
            ready = {key.fileobj for key, _ in selector.select()}
            if agent in ready:
                length, descriptors, _, _ = socket.recv_fds(agent, LENGTH_BYTES, DESCRIPTORS_MAX)
                if not length:
                    selector.unregister(agent)
                    continue
                orders = json.loads(agent.recv(int(length), socket.MSG_WAITALL))
                pid = fork()
                if not pid:
                    break
                stand_ins[pid] = socket.socket(fileno=descriptors[0])
                for descriptor in descriptors[1:]:
                    os.close(descriptor)
            if woken in ready:
                os.read(woken, 1 << 16)
                reap(stand_ins)
        else:
            return None
    # A child: nothing of the server's stays open.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for end in (agent, *stand_ins.values()):
        end.close()
    for descriptor in (woken, waker, descriptors[0]):
        os.close(descriptor)
    return orders, descriptors[1:]


def fork() -> int:
    """OpenBLAS's threads, of which Python 3.12 warns, end before a fork and come again after it (pthread_atfork(3))."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def reap(stand_ins: dict[int, socket.socket]) -> None:
    """Tell the stand-ins of ranks that have ended how."""
    for pid, connection in list(stand_ins.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del stand_ins[pid]
            with contextlib.suppress(OSError):  # the launcher has ended its stand-in
                connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            connection.close()


def become(orders: dict[str, Any], descriptors: list[int]) -> None:
    """Be what the launcher started: its environment, its folder, its open connection under the same number."""
    os.setpgrp()  # a task that signals its process group must not reach the others
    os.environ.clear()
    os.environ.update(orders["environment"])
    os.chdir(orders["folder"])
    # First out of the way, then to their numbers: one may be what another shall become.
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 1000) for descriptor in descriptors]
    for descriptor, number in zip(moved, orders["descriptors"], strict=True):
        os.dup2(descriptor, number)
    # A scheduler of hundreds of workers needs thousands of descriptors; dask-mpi leaves the soft limit as it is.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if orders["lock"]:
        # Held by this process and its children: while it is, `envpack gc` spares the stage.
        lock = os.open(orders["lock"], os.O_RDONLY | os.O_NOFOLLOW)
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.set_inheritable(lock, True)
    # Rank 0 (PMI_RANK: of MPICH and srun) becomes the scheduler; boot sees its end even before the two have spoken.
    environment = orders["environment"]
    if environment.get("PMIX_RANK", environment.get("PMI_RANK")) == "0":
        Path(environment["MPIBOOT_CONTROL_FOLDER"], "scheduler.pid").write_text(str(os.getpid()))
    sys.argv = orders["command"][1:]


if __name__ == "__main__":
    main()
