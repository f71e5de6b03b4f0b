"""What each rank runs first: `python -I -S stand_in.py JOB_DIRECTORY`. The node's agent (agent/adopt.py) starts dask-mpi.

Started by whatever launcher there is, on every node, with whatever environment that launcher hands on; so the
environment, which may hold secrets, comes from a file that only the user can read, and the command line is empty of
both. Standard library only, and few modules of it: every rank of a job runs this at once.
"""

import array
import json
import os
import socket
import sys


def main() -> int:
    directory = sys.argv[1]
    with open(os.path.join(directory, "rank-environment.json")) as file:  # noqa: PTH118, PTH123
        orders = json.load(file)
    for path in orders["required_files"]:
        # A rank without its TLS files would speak in the clear, or hang: it refuses instead.
        if not os.access(path, os.R_OK):
            sys.exit(
                f"mpiboot: a rank on {os.uname().nodename} cannot read {path}; it does not start without it"
            )
    # What was asked for by name comes last: `--env-var PYTHONPATH` means it.
    kept = {name: value for name, value in os.environ.items() if name not in orders["unset"]}
    environment = {**kept, **orders["set"]}
    # The connection to MPI's process manager that hydra and Slurm's pmi2 leave open (PMI-1 and PMI-2, PMI_FD).
    descriptors = [int(environment["PMI_FD"])] if environment.get("PMI_FD", "").isdigit() else []
    return hand_over(
        orders["agent_folder"],
        {
            "command": orders["command"],
            "node_arguments": orders["node_arguments"],
            "server": orders["server"],
            "environment": environment,
            "folder": os.getcwd(),  # noqa: PTH109
            "lock": orders["lock"],
            "descriptors": descriptors,
        },
    )


def hand_over(folder: str, rank: "dict[str, object]") -> int:
    """Let the agent start the rank, and end as it ends."""
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # By descriptor: the path of a socket may have 108 bytes (unix(7)).
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        agent.connect(f"/proc/self/fd/{handle}/agent.sock")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rank["descriptors"]))]  # type: ignore[call-overload]
        agent.sendmsg([b"."], rights if rank["descriptors"] else [])
        agent.sendall(json.dumps(rank).encode())
        agent.shutdown(socket.SHUT_WR)
        status = agent.recv(16).decode()
    except OSError as error:
        print(f"mpiboot: the agent in {folder} on {os.uname().nodename}: {error}", file=sys.stderr)
        return 1
    return 1 if not status else int(status) if int(status) >= 0 else 128 - int(status)


if __name__ == "__main__":
    sys.exit(main())
