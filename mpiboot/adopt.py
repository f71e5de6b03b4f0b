"""The ranks of one node as descendants of its agent, which outlives the launcher. Standard library only.

An MPI launcher ends all ranks when it loses one node's daemon (Open MPI 5.0.11: "We cannot recover from this failure"),
and Slurm ends what runs in a daemon's step with it; but once they know each other's ranks, Dask's processes need MPI
no more, and survive the loss of its daemon. So what the launcher starts (`rank.py`) only stands in for the rank: it hands
its environment, and MPI's open connection (PMI_FD), to the node's agent, which has dask-mpi started from them in its own
step (forkserver.py). How that ended, the stand-in is told.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from mpiboot.control import socket_address

SOCKET_NAME = "agent.sock"
HANDOVER_TIMEOUT_S = 10.0
# What goes to the fork server before a rank's orders: their length, and with it the connections.
LENGTH_BYTES = 12
DESCRIPTORS_MAX = 8


class Ranks:
    """This node's ranks."""

    def __init__(self, folder: Path) -> None:
        self.server: subprocess.Popen[bytes] | None = None
        self._to_server: socket.socket | None = None
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(socket_address(self._folder, SOCKET_NAME))
        self.listener.listen(128)

    def adopt(self) -> None:
        """Have the rank started that a stand-in asks for."""
        connection, _ = self.listener.accept()
        connection.settimeout(HANDOVER_TIMEOUT_S)
        descriptors: list[int] = []
        try:
            _, descriptors, _, _ = socket.recv_fds(connection, 1, DESCRIPTORS_MAX - 1)
            with connection.makefile("rb") as file:
                orders = file.read()
            if self._to_server is None:
                self.server, self._to_server = start_server(json.loads(orders))
            length = str(len(orders)).rjust(LENGTH_BYTES).encode()
            socket.send_fds(self._to_server, [length], [connection.fileno(), *descriptors])
            self._to_server.sendall(orders)
        except (OSError, ValueError) as error:
            print(f"mpiboot: a rank on {os.uname().nodename} could not be started: {error}", file=sys.stderr)
        finally:
            connection.close()
            for descriptor in descriptors:
                os.close(descriptor)

    def close(self) -> None:
        """Start no more: the fork server ends with the last of its ranks."""
        self.listener.close()
        os.close(self._folder)
        if self._to_server:
            self._to_server.close()


def start_server(rank: dict[str, Any]) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """Start the fork server in the environment of a rank, for the dynamic linker reads its variables only then."""
    python, *command = rank["command"]
    ours, theirs = socket.socketpair()
    with theirs:
        server = subprocess.Popen(
            [python, rank["server"], str(theirs.fileno()), *command],
            env=rank["environment"],
            cwd=rank["folder"],
            stdin=subprocess.DEVNULL,
            stdout=2,  # the agent's own is for its answers to boot
            pass_fds=[theirs.fileno()],
            preexec_fn=apart,
        )
    return server, ours


def apart() -> None:
    """In the child: a process group of its own; and what the agent ignores would stay ignored."""
    os.setpgrp()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
