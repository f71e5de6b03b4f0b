"""The fork server of one node: it imports dask-mpi and distributed once, and every rank of the node is forked from it.

    python fork_server.py SOCKET,OUTPUT,LOG SCRIPT ARGUMENT...

The node's agent (agent/adopt.py) starts the fork server, and requests each rank over the socket whose descriptor is
SOCKET. A request is one byte, sent with these descriptors: a file with a `RankRequest`, the stand-in's
connection, and MPI's connections. Each forked child becomes a rank, and runs SCRIPT (run_dask_mpi.py) as a newly
started Python would. Workers do not profit: nannies spawn them as new processes.

OUTPUT is the reading end of the pipe that the ranks print to. The agent reads it. If the agent was killed, the fork
server reads it and copies it to LOG, so that printing neither fails nor blocks.
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

from envpack.common.locks import hold_folder
from mpiboot.protocol.node import DESCRIPTORS_MAX, RankRequest, report_scheduler, start_failure


def main() -> None:
    """Serve the agent. Returns in the server when that ends, and in each rank when the rank ends."""
    # Tasks must not import modules from this file's folder, which is not there with `--env-var PYTHONSAFEPATH=1`.
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    # Restore what a new Python has: a child inherits that the agent ignores these signals.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    agent, output, log = map(int, sys.argv[1].split(","))
    import dask_mpi.cli  # noqa: F401

    gc.freeze()  # otherwise the first collection of a rank copies the memory that all ranks share
    with socket.socket(fileno=agent) as connection:
        descriptors = serve(connection, output, log)
    if descriptors:
        try:
            become(*descriptors)
        except (OSError, ValueError) as error:
            sys.exit(start_failure(error))
        runpy.run_path(sys.argv[0], run_name="__main__")


def serve(agent: socket.socket, output: int, log: int) -> list[int]:
    """Fork ranks and report their ends to their stand-ins, until the agent closes its socket and all ranks have ended.

    Parameters
    ----------
    agent : socket
        The connection to the agent, which sends the requests.
    output, log : int
        Descriptors: the reading end of the ranks' pipe, and the log to copy it to once the agent is gone.

    Returns
    -------
    list of int
        In a rank: the descriptors that came with the request. In the server, at its end: none.
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
                byte, descriptors, _, _ = socket.recv_fds(agent, 1, DESCRIPTORS_MAX + 2)
                if not byte:
                    selector.unregister(agent)
                    selector.register(output, selectors.EVENT_READ)
                    os.set_blocking(log, False)  # the command that reads it may be stopped
                elif not (pid := fork()):
                    break
                else:
                    if pid > 0:
                        stand_ins[pid] = socket.socket(fileno=descriptors.pop(1))
                    for descriptor in descriptors:
                        os.close(descriptor)
            if output in ready:
                with contextlib.suppress(OSError):  # another has read it, or the log cannot be written
                    os.write(log, os.read(output, 1 << 16))
            if woken in ready:
                os.read(woken, 1 << 16)
                reap(stand_ins)
        else:
            return []
    # This is a child: close what belongs to the server.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for end in (agent, *stand_ins.values()):
        end.close()
    for descriptor in (woken, waker, output, log):
        os.close(descriptor)
    return descriptors


def fork() -> int:
    """Fork; return the child's process id, 0 in the child, and -1 if the fork failed.

    Python 3.12 and later warn of OpenBLAS's threads, but those end before a fork and start again after it
    (pthread_atfork(3)).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    except OSError as error:
        print(start_failure(error), file=sys.stderr)
        return -1


def reap(stand_ins: dict[int, socket.socket]) -> None:
    """Send the exit status of each rank that has ended to its stand-in."""
    for pid, connection in list(stand_ins.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del stand_ins[pid]
            with contextlib.suppress(OSError):  # the launcher may have ended the stand-in
                connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            connection.close()


def become(memory: int, connection: int, *mpi: int) -> None:
    """Turn this process into the rank that a stand-in requested.

    Parameters
    ----------
    memory : int
        Descriptor of the file with the `RankRequest`.
    connection : int
        Descriptor of the stand-in's connection.
    mpi : int
        Descriptors of MPI's connections; in this process they get the same numbers as in the stand-in.
    """
    with os.fdopen(memory, "rb") as file:
        file.seek(0)
        request: RankRequest = json.load(file)
    os.setpgrp()  # a task that signals its process group must not reach other ranks
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    # A scheduler of hundreds of workers needs thousands of descriptors, and dask-mpi does not raise the soft limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Move descriptors above all targets first: a target number may be in use. The copy of the stand-in's connection stays
    # open as long as this process lives, so that the stand-in outlives the server.
    free = max(request["descriptors"], default=2) + 1
    _, *away = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, free) for descriptor in (connection, *mpi)]
    for descriptor in (connection, *mpi):
        os.close(descriptor)
    for descriptor, number in zip(away, request["descriptors"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if request["lock"]:
        # This process and its children hold the lock; meanwhile `envpack gc` keeps the staged prefix.
        hold_folder(request["lock"])
    report_scheduler(request["environment"], os.getpid())
    sys.argv = request["command"][1:]


if __name__ == "__main__":
    main()
