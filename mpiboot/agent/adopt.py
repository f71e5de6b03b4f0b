"""The ranks of one node as descendants of its agent, which outlives the launcher. Standard library only.

An MPI launcher ends all ranks when it loses one node's daemon (Open MPI 5.0.11: "We cannot recover from this failure"),
and Slurm ends what runs in a daemon's step with it; but once they know each other's ranks, Dask's processes need MPI
no more, and survive the loss of its daemon. So what the launcher starts (`rank/stand_in.py`) only stands in for the
rank: it hands its environment, and MPI's open connection (PMI_FD), to the node's agent, which has dask-mpi started from
them in its own step (rank/fork_server.py). How that ended, the stand-in is told.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from mpiboot.protocol.control import socket_address

SOCKET_NAME = "agent.sock"
HANDOVER_TIMEOUT_S = 10.0
DESCRIPTORS_MAX = 8


class Ranks:
    """This node's ranks."""

    def __init__(self, folder: Path, node: str) -> None:
        self.node = node
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
            _, descriptors, _, _ = socket.recv_fds(connection, 1, DESCRIPTORS_MAX)
            with connection.makefile("rb") as file:
                orders = json.load(file)
            # The batch system's name of this node, which a rank does not know.
            orders["command"] += orders.pop("node_arguments")[self.node]
            if self.server is None or self.server.poll() is not None:
                self.start_server(orders)
            assert self.server and self._to_server
            # Until it has a pid of its own: a server that cannot start is rank 0's end, too.
            tell_boot(orders["environment"], self.server.pid)
            # In a file of memory, so that one byte with descriptors is all that travels, and nobody waits for another.
            with os.fdopen(os.memfd_create("orders"), "w+b") as file:
                file.write(json.dumps(orders).encode())
                file.flush()
                given = [file.fileno(), connection.fileno(), *descriptors]
                socket.send_fds(self._to_server, [b"."], given)
        except (OSError, ValueError, LookupError) as error:
            print(not_started(error), file=sys.stderr)
        finally:
            connection.close()
            for descriptor in descriptors:
                os.close(descriptor)

    def start_server(self, rank: dict[str, Any]) -> None:
        """In the environment of a rank, for the dynamic linker reads its variables only as a program starts."""
        if self._to_server:
            self._to_server.close()
        python, *command = rank["command"]
        self._to_server, theirs = socket.socketpair()
        with theirs:
            self.server = subprocess.Popen(
                [python, rank["server"], str(theirs.fileno()), *command],
                env=rank["environment"],
                cwd=rank["folder"],
                stdin=subprocess.DEVNULL,
                stdout=2,  # the agent's own is for its answers to boot
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def close(self) -> None:
        """Start no more: the fork server ends with the last of its ranks."""
        self.listener.close()
        os.close(self._folder)
        if self._to_server:
            self._to_server.close()


def not_started(error: Exception) -> str:
    return f"mpiboot: a rank on {os.uname().nodename} could not be started: {error}"


def tell_boot(environment: dict[str, str], pid: int) -> None:
    """Rank 0 (PMI_RANK: of MPICH and srun) becomes the scheduler; boot sees its end even before the two have spoken."""
    if environment.get("PMIX_RANK", environment.get("PMI_RANK")) == "0":
        Path(environment["MPIBOOT_CONTROL_FOLDER"], "scheduler.pid").write_text(str(pid))
