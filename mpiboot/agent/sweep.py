"""Finds and removes what a job has left on a node: processes that still run, shared memory that no process uses, and
files of a killed launcher.

The agent imports it; it imports what an agent may import at its start.
"""

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from mpiboot.common.processes import end_all, process_ids
from mpiboot.protocol.variables import JOB_KEY_VARIABLE

TERM_GRACE_S = 0.5
KILL_GRACE_S = 1.0
SHARED_MEMORY = Path("/dev/shm")
# Names of the semaphores of Python's multiprocessing, before (glibc's sem_open.c) and after they get their final name,
# of its blocks, and of the segments of Open MPI, MPICH and Intel MPI. The user's other files there are kept.
SHARED_MEMORY_NAMES = re.compile(
    r"sem\.mp-|sem\.\w{6}$|psm_|sm_segment\.|vader_segment\.|osc_rdma|mpich|MPICH|mpi_shar|Intel_MPI_"
)
# Blocks of Python's multiprocessing: one process may make and close a block, and another may open it later. In between,
# no process uses it.
PYTHON_SHM_PREFIX = "psm_"
# MPICH's Hydra writes the node's topology there, whatever TMPDIR says; a proxy that is killed leaves it.
TEMPORARY = Path("/tmp")
HYDRA_FILES = "hydra_hwloc_xmlfile_??????"


def marked_processes(job_variables: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield the process id and the job key of this user's processes that belong to a job.

    A job's ranks, launcher and command have its key in their environment, and so have all processes that these start.

    Parameters
    ----------
    job_variables : mapping
        As in `Orders`.
    """
    for pid in process_ids():
        with contextlib.suppress(OSError):
            if (process := Path(f"/proc/{pid}")).stat().st_uid == os.getuid():
                entries = (process / "environ").read_bytes().decode(errors="replace").split("\0")
                environ = dict(entry.split("=", 1) for entry in entries if "=" in entry)
                if key := job_key(environ, job_variables):
                    yield pid, key


def job_key(environ: Mapping[str, str], job_variables: Mapping[str, str]) -> str | None:
    """Return the key of the job that a process with this environment belongs to; None if it belongs to none.

    A job that a task or the command has submitted inherits their variables. Its processes belong to that job: the batch
    system has given them its id.
    """
    key = environ.get(JOB_KEY_VARIABLE)
    if key is None:
        return None
    job_id = environ.get(job_variables.get(key.partition("-")[0], ""))
    return key if job_id is None or key.endswith(f"-{job_id}") else None


def leftovers(key: str, job_variables: Mapping[str, str]) -> set[int]:
    """Return the process ids of a job's processes on this node, without this process."""
    return {pid for pid, found in marked_processes(job_variables) if found == key} - {os.getpid()}


def end_leftovers(key: str, job_variables: Mapping[str, str], grace_s: float) -> None:
    """Wait until the job's processes have ended by themselves, then end the rest: SIGTERM, then SIGKILL.

    Parameters
    ----------
    key : str
        Names the job.
    job_variables : mapping
        As in `Orders`.
    grace_s : float, seconds
        How long to wait before the first signal.
    """
    end_all(
        lambda: leftovers(key, job_variables),
        by_themselves_s=grace_s,
        after_term_s=TERM_GRACE_S,
        after_kill_s=KILL_GRACE_S,
    )


def remove_shared_memory(since: float, spare: str | None = None, dying: Collection[int] = ()) -> None:
    """Remove this user's segments and semaphores that no living process uses.

    A killed process leaves them, and they take up the node's memory; nothing in their names tells whose they are.

    Parameters
    ----------
    since : float, seconds since the epoch
        Older files are kept.
    spare : str, optional
        Files whose names begin with this prefix are kept: they may belong to another job.
    dying : collection of int
        Ids of ending processes: a file that only these use is removed.
    """
    candidates = {}
    for entry in SHARED_MEMORY.iterdir():
        if SHARED_MEMORY_NAMES.match(entry.name) and not (spare and entry.name.startswith(spare)):
            with contextlib.suppress(FileNotFoundError):  # its process has just removed it
                stat = entry.lstat()
                if stat.st_uid == os.getuid() and stat.st_ctime >= since - 1:
                    candidates[entry] = stat.st_dev, stat.st_ino
    in_use = used_shared_memory(dying) if candidates else set()
    for entry, device_and_inode in candidates.items():
        if device_and_inode not in in_use:
            with contextlib.suppress(OSError):
                entry.unlink()


def remove_hydra_files(since: float) -> None:
    """Remove this user's files that a killed Hydra has left, but none older than `since` (seconds since the epoch)."""
    for path in TEMPORARY.glob(HYDRA_FILES):
        with contextlib.suppress(OSError):  # Hydra has just removed it
            if (stat := path.lstat()).st_uid == os.getuid() and stat.st_ctime >= since - 1:
                path.unlink()


def used_shared_memory(dying: Collection[int]) -> set[tuple[int, int]]:
    """Return device and inode of each shared memory file that the user's processes, without `dying`, use.

    A file is in use if it is open or mapped (proc(5), fd and maps). The process that made a semaphore has it mapped
    under its first, temporary name, so names do not identify it.
    """
    in_use = set()
    for pid in process_ids():
        if pid not in dying:
            process = Path(f"/proc/{pid}")
            with contextlib.suppress(OSError):
                for line in (process / "maps").read_text(errors="replace").splitlines():
                    words = line.split(maxsplit=5)
                    if words[5:] and words[5].startswith(f"{SHARED_MEMORY}/"):
                        major, _, minor = words[3].partition(":")
                        in_use.add((os.makedev(int(major, 16), int(minor, 16)), int(words[4])))
                for handle in (process / "fd").iterdir():
                    with contextlib.suppress(OSError):
                        if str(handle.readlink()).startswith(f"{SHARED_MEMORY}/"):
                            in_use.add(((stat := handle.stat()).st_dev, stat.st_ino))
    return in_use
