"""What each rank runs first: `python -I -S rank.py JOB_DIRECTORY`. Then it becomes dask-mpi.

Started by whatever launcher there is, on every node, with whatever environment that launcher hands on; so the
environment, which may hold secrets, comes from a file that only the user can read, and the command line is empty of
both. Standard library only, and few modules of it: every rank of a job runs this at once.
"""

import fcntl
import json
import os
import resource
import sys


def main() -> None:
    directory = sys.argv[1]
    with open(os.path.join(directory, "rank-environment.json")) as file:  # noqa: PTH118, PTH123
        orders = json.load(file)
    for path in orders["required_files"]:
        # A rank without its TLS files would speak in the clear, or hang: it refuses instead.
        if not os.access(path, os.R_OK):
            sys.exit(
                f"mpiboot: a rank on {os.uname().nodename} cannot read {path}; it does not start without it"
            )
    environment = {**os.environ, **orders["set"]}
    for name in orders["unset"]:
        environment.pop(name, None)
    # A scheduler of hundreds of workers needs thousands of descriptors; dask-mpi leaves the soft limit as it is.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if orders["lock"]:
        # Held by this process and its children: while it is, `envpack gc` spares the stage.
        lock = os.open(orders["lock"], os.O_RDONLY | os.O_NOFOLLOW)
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.set_inheritable(lock, True)
    # Rank 0 (PMI_RANK: of MPICH and srun) becomes the scheduler; boot sees its end even before the two have spoken.
    if os.environ.get("PMIX_RANK", os.environ.get("PMI_RANK")) == "0":
        with open(os.path.join(orders["set"]["MPIBOOT_CONTROL_FOLDER"], "scheduler.pid"), "w") as file:  # noqa: PTH118, PTH123
            file.write(str(os.getpid()))
    os.execve(orders["command"][0], orders["command"], environment)


if __name__ == "__main__":
    main()
