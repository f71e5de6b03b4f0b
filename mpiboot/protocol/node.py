"""What boot, agent and ranks of a node share: the types of their messages, and the job's folder on the node.

Boot, agent and rank import it. An agent starts on every node at once from a slow file system, so it imports little.
"""

from pathlib import Path
from typing import TypedDict

from envpack.common.places import host_name, user_folder
from mpiboot.protocol.variables import CONTROL_FOLDER_VARIABLE, PMI_RANK, PMIX_RANK

# Sockets in the job's folder: boot's for the scheduler, on the first node; and the agent's for its node's stand-ins, with
# the most descriptors that one of those may hand over.
BOOT_SOCKET_NAME = "boot.sock"
AGENT_SOCKET_NAME = "agent.sock"
DESCRIPTORS_MAX = 8
# In the job's folder on the first node: the process id of rank 0.
SCHEDULER_PID_NAME = "scheduler.pid"


class RankPlan(TypedDict):
    """The file that every rank of the job reads first: `rank-environment.json` in the job's directory.

    Attributes
    ----------
    set, unset : dict of str to str, list of str
        Variables that the rank gets, and names of those that it must not inherit from its launcher; with `*` at the end,
        all names that begin so. `set` has precedence.
    nodes_own : list of str
        As in `RankRequest`; variables in `set` have precedence.
    required_files : list of str
        Files that the rank must be able to read; otherwise it does not start.
    agent_folder : str
        The job's folder on the node, with the agent's socket.
    command, node_arguments, server, lock
        As in `RankRequest`.
    """

    set: dict[str, str]
    unset: list[str]
    nodes_own: list[str]
    required_files: list[str]
    agent_folder: str
    command: list[str]
    node_arguments: dict[str, list[str]]
    server: str
    lock: str | None


class RankRequest(TypedDict):
    """The request to start a rank, sent by a stand-in to its node's agent, and by the agent to the fork server.

    Attributes
    ----------
    command : list of str
        The interpreter, the script, and its arguments.
    node_arguments : dict of str to list of str
        Further arguments, by the name of the node; the agent appends those of its node to `command`.
    server : str
        Path of fork_server.py.
    environment : dict of str to str
        The rank's environment.
    nodes_own : list of str
        Names of variables that the rank gets from its node's agent, whatever its launcher has; with `*` at its end, all
        names that begin so. The agent adds them to `environment`.
    folder : str
        The rank's working directory.
    lock : str or None
        The staged prefix, to be locked as long as the rank lives.
    descriptors : list of int
        The numbers that the descriptors sent along have in the rank.
    """

    command: list[str]
    node_arguments: dict[str, list[str]]
    server: str
    environment: dict[str, str]
    nodes_own: list[str]
    folder: str
    lock: str | None
    descriptors: list[int]


def job_folder(root: Path, job_key: str) -> Path:
    """Return the job's own folder on each node, for spill files, MPI's session folders and sockets; removed with the
    job."""
    return user_folder(root) / ".jobs" / job_key


def socket_address(folder: int, name: str) -> str:
    """Return the address of a socket in an open folder: short enough for any folder (108 bytes, unix(7))."""
    return f"/proc/self/fd/{folder}/{name}"


def start_failure(error: Exception) -> str:
    """Return the message of a rank that could not be started."""
    return f"mpiboot: a rank on {host_name()} could not be started: {error}"


def report_scheduler(environment: dict[str, str], pid: int) -> None:
    """Write the pid of rank 0, which becomes the scheduler, where boot reads it; do nothing for another rank.

    So boot notices the end of a scheduler that has not connected yet. Launchers with PMIx set PMIX_RANK, those with
    PMI-1 or PMI-2 set PMI_RANK.
    """
    if environment.get(PMIX_RANK, environment.get(PMI_RANK)) == "0":
        Path(environment[CONTROL_FOLDER_VARIABLE], SCHEDULER_PID_NAME).write_text(str(pid))
