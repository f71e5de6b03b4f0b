"""The program that the MPI launcher starts as each rank: `python -I -S stand_in.py JOB_DIRECTORY`.

The node's agent (agent/adopt.py) starts the rank itself; the stand-in waits for it, and ends with the rank's exit
status. The rank's environment comes from a file that only the user can read: it may hold secrets, and launchers differ
in the variables that they pass on. All ranks of a job run this at once, so it imports few modules, and none of mpiboot.
"""

import array
import json
import os
import socket
import sys


def main() -> int:
    """Start a rank as the job's `RankPlan` says (protocol/node.py), and return its exit status."""
    directory = sys.argv[1]
    with open(os.path.join(directory, "rank-environment.json")) as file:  # noqa: PTH118, PTH123
        plan = json.load(file)
    for path in plan["required_files"]:
        # Without its TLS files, a rank would hang, or would not encrypt.
        if not os.access(path, os.R_OK):
            sys.exit(
                f"mpiboot: a rank on {os.uname().nodename} cannot read {path}, and does not start without it. "
                f"Look at it on that node: ls -l {path}"
            )
    # `set` has precedence: the user may set any variable with `--env-var`.
    names = {*plan["unset"], *plan["nodes_own"]}
    starts = tuple(pattern[:-1] for pattern in names if pattern.endswith("*"))
    kept = {
        name: value for name, value in os.environ.items() if name not in names and not name.startswith(starts)
    }
    environment = {**kept, **plan["set"]}
    # The open connection to MPI's process manager (PMI-1 and PMI-2 of Hydra and of a batch system's PMI-2).
    descriptors = [int(environment["PMI_FD"])] if environment.get("PMI_FD", "").isdigit() else []
    return hand_over(
        plan["agent_folder"],
        {
            "command": plan["command"],
            "node_arguments": plan["node_arguments"],
            "server": plan["server"],
            "environment": environment,
            "nodes_own": plan["nodes_own"],
            "folder": os.getcwd(),  # noqa: PTH109
            "lock": plan["lock"],
            "descriptors": descriptors,
        },
    )


def hand_over(folder: str, request: "dict[str, object]") -> int:
    """Ask the agent whose socket is in `folder` to start a rank, and wait for the rank's end.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    request : dict
        A `RankRequest` (protocol/node.py).

    Returns
    -------
    int
        The rank's exit status, as a shell shows it; 1 if the agent could not be reached, or has died.
    """
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # By descriptor, since the path of a socket is limited to 108 bytes (unix(7)).
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        agent.connect(f"/proc/self/fd/{handle}/agent.sock")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", request["descriptors"]))]  # type: ignore[call-overload]
        agent.sendmsg([b"."], rights if request["descriptors"] else [])
        agent.sendall(json.dumps(request).encode())
        agent.shutdown(socket.SHUT_WR)
        status = agent.recv(16).decode()
    except OSError as error:
        print(
            f"mpiboot: a rank on {os.uname().nodename} could not reach its agent in {folder}: {error}. "
            "The agent's messages are in the job's log: mpiboot logs",
            file=sys.stderr,
        )
        return 1
    return 1 if not status else int(status) if int(status) >= 0 else 128 - int(status)


if __name__ == "__main__":
    sys.exit(main())
