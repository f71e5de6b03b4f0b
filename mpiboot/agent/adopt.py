"""Starts the ranks of a node as descendants of its agent, so that they outlive the MPI launcher.

A launcher ends all ranks when it loses one node's daemon (Open MPI 5.0.11: "We cannot recover from this failure"), and a
batch system ends all processes in the daemon's step. But Dask's processes need MPI only to learn their ranks, and can
survive the loss of its daemon. So the launcher starts only a stand-in for each rank (rank/stand_in.py). The stand-in
passes its environment, and MPI's open connection (PMI_FD), to the node's agent, whose fork server (rank/fork_server.py)
starts dask-mpi with them in the agent's step. The stand-in ends with its rank, and with the same exit status.

The agent imports this module; it imports what an agent may import at its start.
"""

import json
import os
import socket
import subprocess
import threading
from pathlib import Path

from mpiboot.agent.folders import nameless_file
from mpiboot.common.patterns import matches
from mpiboot.protocol.node import (
    AGENT_SOCKET_NAME,
    DESCRIPTORS_MAX,
    RankRequest,
    report_scheduler,
    socket_address,
    start_failure,
)

HANDOVER_TIMEOUT_S = 10.0


class Ranks:
    """The ranks of one node.

    Parameters
    ----------
    folder : path
        The job's folder on this node; the agent's socket is made there.
    node : str
        The node's name, as the batch system calls it.
    output, output_reader : int
        Both ends of the pipe that all ranks print to.
    """

    def __init__(self, folder: Path, node: str, output: int, output_reader: int) -> None:
        self.node = node
        self._output = output
        self._output_reader = output_reader
        self.server: subprocess.Popen[bytes] | None = None
        self._to_server: socket.socket | None = None
        self._path = folder
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(socket_address(self._folder, AGENT_SOCKET_NAME))
        self.listener.listen(128)
        self._one_at_a_time = threading.Lock()

    def adopt(self, connection: socket.socket) -> None:
        """Take the request of a stand-in that has connected, and let the fork server start its rank."""
        with self._one_at_a_time:
            self._adopt(connection)

    def _adopt(self, connection: socket.socket) -> None:
        connection.settimeout(HANDOVER_TIMEOUT_S)
        descriptors: list[int] = []
        try:
            _, descriptors, _, _ = socket.recv_fds(connection, 1, DESCRIPTORS_MAX)
            with connection.makefile("rb") as file:
                request: RankRequest = json.load(file)
            # A rank does not know its node's name; the agent does.
            request["command"] += request["node_arguments"][self.node]
            request["node_arguments"] = {}
            # The launcher may have started on another node, whose devices have other numbers.
            own = {name: value for name, value in os.environ.items() if matches(name, request["nodes_own"])}
            request["environment"] = {**own, **request["environment"]}
            if self.server is None or self.server.poll() is not None:
                self.start_server(request)
            assert self.server and self._to_server
            # The fork server's id, until rank 0 has its own: if the fork server fails to start, rank 0 has failed.
            report_scheduler(request["environment"], self.server.pid)
            # The request is in a file: only one byte with descriptors is sent, and neither side blocks. (A Python that
            # was built against an old glibc has no os.memfd_create.)
            with os.fdopen(nameless_file(self._path, "request"), "w+b") as file:
                file.write(json.dumps(request).encode())
                file.flush()
                sent = [file.fileno(), connection.fileno(), *descriptors]
                socket.send_fds(self._to_server, [b"."], sent)
        except (OSError, ValueError, LookupError) as error:
            os.write(self._output, f"{start_failure(error)}\n".encode())
        finally:
            connection.close()
            for descriptor in descriptors:
                os.close(descriptor)

    def start_server(self, request: RankRequest) -> None:
        """Start the fork server in the environment of its first rank.

        The dynamic linker reads variables only as a program starts.
        """
        if self._to_server:
            self._to_server.close()
        python, *command = request["command"]
        self._to_server, theirs = socket.socketpair()
        with theirs:
            # The last descriptor is a copy of the agent's stderr.
            passed = [theirs.fileno(), self._output_reader, os.dup(2)]
            self.server = subprocess.Popen(
                [python, request["server"], ",".join(map(str, passed)), *command],
                env=request["environment"],
                cwd=request["folder"],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=passed,
                start_new_session=True,
            )
            os.close(passed[-1])

    def close(self) -> None:
        """Start no more ranks. The fork server ends after its last rank."""
        self.listener.close()
        os.close(self._folder)
        if self._to_server:
            self._to_server.close()
