"""What the ranks of one node are forked from, so that dask-mpi and distributed are imported but once there.

Started by the node's agent (agent/adopt.py), which hands on what each stand-in asked for: a byte, and with it the
descriptors of its orders (JSON), of the stand-in's connection, and of MPI's. Each child becomes a rank, and runs dask-mpi
as its own interpreter would. Workers, which nannies spawn, import by themselves.
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

from envpack.common.locks import hold_folder
from mpiboot.protocol.node import DESCRIPTORS_MAX, report_scheduler, start_failure


def main() -> None:
    # As if the rank's own script had been started; and what the agent ignores has been ignored so far.
    sys.path[0] = str(Path(sys.argv[2]).parent)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    agent = socket.socket(fileno=int(sys.argv[1]))
    import dask_mpi.cli  # noqa: F401

    gc.freeze()  # else the first collection would copy what all share
    if descriptors := serve(agent):
        try:
            become(*descriptors)
        except (OSError, ValueError) as error:
            sys.exit(start_failure(error))
        runpy.run_path(sys.argv[0], run_name="__main__")


def serve(agent: socket.socket) -> list[int]:
    """Fork ranks, and tell their stand-ins how they end, until the agent asks for no more and all have ended.

    Returns
    -------
    list of int
        In a rank: what was handed on. Empty: in the server, at its end.
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
                asked, descriptors, _, _ = socket.recv_fds(agent, 1, DESCRIPTORS_MAX + 2)
                if not asked:
                    selector.unregister(agent)
                elif not (pid := fork()):
                    break
                else:
                    if pid > 0:
                        stand_ins[pid] = socket.socket(fileno=descriptors.pop(1))
                    for descriptor in descriptors:
                        os.close(descriptor)
            if woken in ready:
                os.read(woken, 1 << 16)
                reap(stand_ins)
        else:
            return []
    # A child: nothing of the server's stays open.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for end in (agent, *stand_ins.values()):
        end.close()
    for descriptor in (woken, waker):
        os.close(descriptor)
    return descriptors


def fork() -> int:
    """os.fork; -1 where it fails.

    OpenBLAS's threads, of which Python 3.12 warns, end before a fork and come again after it (pthread_atfork(3)).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    except OSError as error:
        print(start_failure(error), file=sys.stderr)
        return -1


def reap(stand_ins: dict[int, socket.socket]) -> None:
    """Tell the stand-ins of ranks that have ended how."""
    for pid, connection in list(stand_ins.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del stand_ins[pid]
            with contextlib.suppress(OSError):  # the launcher has ended its stand-in
                connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            connection.close()


def become(memory: int, connection: int, *mpi: int) -> None:
    """Be what the launcher started: its environment, its folder, its open connection under the same number."""
    with os.fdopen(memory, "rb") as file:
        file.seek(0)
        orders = json.load(file)
    os.setpgrp()  # a task that signals its process group must not reach the others
    os.environ.clear()
    os.environ.update(orders["environment"])
    os.chdir(orders["folder"])
    # A scheduler of hundreds of workers needs thousands of descriptors; dask-mpi leaves the soft limit as it is.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # First out of the way, then to their numbers: one may be what another shall become. The stand-in's stays open as
    # long as this process lives, so that the stand-in outlives the server.
    _, *away = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 1000) for descriptor in (connection, *mpi)]
    for descriptor in (connection, *mpi):
        os.close(descriptor)
    for descriptor, number in zip(away, orders["descriptors"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if orders["lock"]:
        # Held by this process and its children: while it is, `envpack gc` spares the stage.
        hold_folder(orders["lock"])
    report_scheduler(orders["environment"], os.getpid())
    sys.argv = orders["command"][1:]


if __name__ == "__main__":
    main()
