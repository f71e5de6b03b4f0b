"""The ranks of one node as children of its agent, which outlives the launcher. Standard library only.

An MPI launcher ends all ranks when it loses one node's daemon (Open MPI 5.0.11: "We cannot recover from this failure"),
and Slurm ends what runs in a daemon's step with it; but once they know each other's ranks, Dask's processes need MPI
no more, and survive the loss of its daemon. So what the launcher starts (`rank.py`) only stands in for the rank: it hands
its environment, and MPI's open connection (PMI_FD), to the node's agent, which starts dask-mpi from them in its own
step, and tells how it ended.
"""

import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from mpiboot.control import socket_address

SOCKET_NAME = "agent.sock"
HANDOVER_TIMEOUT_S = 10.0


class Ranks:
    """This node's ranks, by pid, each with the connection of its stand-in."""

    def __init__(self, folder: Path) -> None:
        self.stand_ins: dict[int, socket.socket] = {}
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(socket_address(self._folder, SOCKET_NAME))
        self.listener.listen(128)

    def adopt(self) -> None:
        """Start the rank that a stand-in asks for."""
        connection, _ = self.listener.accept()
        connection.settimeout(HANDOVER_TIMEOUT_S)
        descriptors: list[int] = []
        try:
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 8)
            with connection.makefile("rb") as file:
                orders = json.loads(file.read())
            self.stand_ins[start(orders, descriptors)] = connection
        except (OSError, ValueError) as error:
            print(f"mpiboot: a rank on {os.uname().nodename} could not be started: {error}", file=sys.stderr)
            connection.close()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def reap(self) -> None:
        """Tell the stand-ins of ranks that have ended how."""
        for pid, connection in list(self.stand_ins.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self.stand_ins[pid]
                with contextlib.suppress(OSError):  # the launcher has ended its stand-in
                    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                connection.close()


def start(orders: dict[str, Any], descriptors: list[int]) -> int:
    """Fork a child that becomes the rank; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        become(orders, descriptors)
    except BaseException as error:
        os.write(2, f"mpiboot: {orders['command'][0]} on {os.uname().nodename}: {error}\n".encode())
    finally:
        os._exit(127)


def become(orders: dict[str, Any], descriptors: list[int]) -> None:
    """Be what the launcher started: its environment, its folder, its open connection under the same number."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)  # what the agent ignores would stay ignored
    os.chdir(orders["folder"])
    # First out of the way, then to their numbers: one may be what another shall become.
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 1000) for descriptor in descriptors]
    for descriptor, number in zip(moved, orders["descriptors"], strict=True):
        os.dup2(descriptor, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # the agent's stdout is for its answers to boot
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
    os.execve(orders["command"][0], orders["command"], environment)
