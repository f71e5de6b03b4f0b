"""A job's folder on a node: the job's agent makes, locks and removes it. A later job's agent removes those of killed
agents.

The agent imports it; it imports what an agent may import at its start.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from envpack.common.locks import open_lock_file, try_lock, wait_for_lock
from envpack.common.places import user_folder
from mpiboot.agent.sweep import (
    PYTHON_SHM_PREFIX,
    end_leftovers,
    leftovers,
    marked_processes,
    remove_hydra_files,
    remove_shared_memory,
)
from mpiboot.common.processes import host_identity
from mpiboot.common.trust import check_trusted
from mpiboot.errors import StageError
from mpiboot.protocol.node import job_folder

LOCK_NAME = "agent.lock"
# How long to wait for the agent of the job's earlier run: one that has lost boot ends after its silence.
PREDECESSOR_S = 90.0
PREDECESSOR_POLL_S = 0.2


def make_job_folder(root: Path, job_key: str, job_variables: Mapping[str, str]) -> Path:
    """Make and lock the job's folder, mode 0700, and clean up after jobs whose agents were killed.

    `job_variables` is as in `Orders`.

    The lock is held as long as this process lives: a folder whose lock is free belongs to a job whose agent was killed.

    Raises
    ------
    SecurityError
        Another user has made the user's folder below the staging root.
    StageError
        The agent of another node has locked the folder: the staging root is on a shared file system. Or an agent of the
        job's earlier run, before a requeue, has not ended after `PREDECESSOR_S`.
    """
    user_folder(root).mkdir(mode=0o700, exist_ok=True)
    check_trusted(user_folder(root), "directory")
    (user_folder(root) / ".jobs").mkdir(mode=0o700, exist_ok=True)
    folder = job_folder(root, job_key)
    deadline = time.monotonic() + PREDECESSOR_S
    while (holder := _take_job_folder(root, folder, job_variables)) is not None:
        identity, _, pid = holder.partition(" ")
        if identity != host_identity():
            raise StageError(
                f"another node of this job uses {folder} too: the staging root {root} is on a shared file system",
                "Set MPIBOOT_STAGE_ROOT to a folder that is local to each node",
            )
        if time.monotonic() > deadline:
            raise StageError(
                f"an agent of this job's earlier run (process {pid}) has not ended, and still uses {folder}",
                "Submit the job again",
            )
        time.sleep(PREDECESSOR_POLL_S)
    return folder


def _take_job_folder(root: Path, folder: Path, job_variables: Mapping[str, str]) -> str | None:
    """Make and lock a job's folder.

    Returns
    -------
    str or None
        If another agent has it: `host_identity` of that agent, and its process id.
    """
    # Between another agent's mkdir and its lock, its folder looks like that of a killed agent.
    one_at_a_time = open_lock_file(user_folder(root) / ".jobs.lock")
    wait_for_lock(one_at_a_time)
    try:
        clean_abandoned(root, job_variables)
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            descriptor = lock_folder(folder)
            if descriptor is None:
                return (folder / LOCK_NAME).read_text()
        except FileNotFoundError:  # its agent is removing it
            return f"{host_identity()} ?"
        os.write(descriptor, f"{host_identity()} {os.getpid()}".encode())
        return None
    finally:
        os.close(one_at_a_time)


def lock_folder(folder: Path) -> int | None:
    """Lock a job's folder.

    Returns
    -------
    int or None
        A descriptor: the lock is held until it is closed, or this process ends. None if another process has the lock.
    """
    path = folder / LOCK_NAME
    descriptor = open_lock_file(path)
    if try_lock(descriptor, path):
        return descriptor
    os.close(descriptor)
    return None


def nameless_file(folder: Path, name: str) -> int:
    """Open a new file whose name is removed at once; the kernel removes the file when the last process closes it."""
    path = folder / name
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    path.unlink()
    return descriptor


def clean_abandoned(root: Path, job_variables: Mapping[str, str]) -> None:
    """Clean up after the jobs on this node whose agents were killed."""
    for folder in (user_folder(root) / ".jobs").iterdir():
        with contextlib.suppress(FileNotFoundError):  # its own agent is removing it
            descriptor = lock_folder(folder)
            if descriptor is not None:
                clean(folder, job_variables, 0.0)
                os.close(descriptor)


def clean(folder: Path, job_variables: Mapping[str, str], grace_s: float) -> None:
    """Remove everything that a job has left on this node: processes, shared memory, a launcher's files, and folder.

    Parameters
    ----------
    folder : path
        The job's folder; its name is the job key.
    job_variables : mapping
        As in `Orders`.
    grace_s : float, seconds
        How long the job's processes may take to end by themselves.
    """
    try:
        began = (folder / LOCK_NAME).stat().st_mtime
        end_leftovers(folder.name, job_variables, grace_s)
        other_jobs = {key for _, key in marked_processes(job_variables)} - {folder.name}
        spare = PYTHON_SHM_PREFIX if other_jobs else None
        remove_shared_memory(began, spare=spare, dying=leftovers(folder.name, job_variables))
        if not other_jobs:  # a launcher that starts just now needs its file
            remove_hydra_files(began)
        # The last of these jobs removes what was spared: backdate their locks, so that they also remove what is left of
        # this job.
        for key in other_jobs:
            with contextlib.suppress(OSError):
                lock_file = folder.parent / key / LOCK_NAME
                os.utime(lock_file, times=(began, min(began, lock_file.stat().st_mtime)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
