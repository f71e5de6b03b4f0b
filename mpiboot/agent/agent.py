"""The agent that boot runs on each node: `python -m mpiboot.node ORDERS`, ORDERS and its answer in JSON.

It stages the environment, answers, and lives as long as the job: when its stdin ends or a SIGTERM comes, however the
job ended, it ends what the job left running on this node and removes the job's folder. (A step started only then
would be too late: Slurm starts none in a job that is being cancelled.) It starts from the shared file system on all
nodes at once: standard library and zstandard only.
"""

import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from envpack.common.locks import open_lock_file, try_lock, wait_for_lock
from envpack.common.mounts import file_system, is_memory
from envpack.common.places import host_name, user_folder
from mpiboot.agent.adopt import Ranks
from mpiboot.common.interfaces import interfaces
from mpiboot.common.processes import end_all, process_ids
from mpiboot.common.trust import check_trusted
from mpiboot.common.units import show_duration
from mpiboot.errors import StageError
from mpiboot.protocol.job_directory import JobDirectory

JOB_KEY_VARIABLE = "MPIBOOT_JOB_KEY"
LOCK_NAME = "agent.lock"
# Boot writes an empty line so often; its node is lost when none came for so long.
HEARTBEAT_S = 5.0
SILENCE_S = 45.0
# Less than KillWait's least (slurm.conf(5)) in all: what a cancelled job's agents have left to do then, is not done.
LEFTOVERS_GRACE_S = 2.5
TERM_GRACE_S = 0.5
KILL_GRACE_S = 1.0
SHARED_MEMORY = Path("/dev/shm")
# multiprocessing's semaphores, before (glibc's sem_open.c) and after they get their name, and blocks; Open MPI's,
# MPICH's and Intel MPI's segments. A user's own files stay.
SHARED_MEMORY_NAMES = re.compile(
    r"sem\.mp-|sem\.\w{6}$|psm_|sm_segment\.|vader_segment\.|osc_rdma|mpich|MPICH|mpi_shar|Intel_MPI_"
)
# Python's blocks: one process may make and close them, and another open them later, with nobody there in between.
PASSED_ON = "psm_"


class JobOver(BaseException):
    """The job ends: raised by SIGTERM, wherever the agent is."""


def node_name(orders: Mapping[str, Any]) -> str:
    """This node as the batch system calls it."""
    return str(orders["node"] or os.environ.get("SLURMD_NODENAME") or host_name())


def job_folder(root: Path, job_key: str) -> Path:
    """The job's own folder on each node: spill files, MPI's session folders, sockets. Gone with the job."""
    return user_folder(root) / ".jobs" / job_key


def memory_bytes() -> int:
    """This host's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def prepare(orders: Mapping[str, Any]) -> dict[str, Any]:
    """Make the job's folder on this node, and say what this node has.

    Parameters
    ----------
    orders
        `node` (its name, where there is only one), `root` (staging root), `job_key`, `prefix` (where the environment is
        to be staged; None: nowhere).

    Returns
    -------
    dict
        `interfaces`, `memory_bytes`, `cpus`, `root_is_memory`, and `has_stage`: the prefix was staged here before.
    """
    folder = make_job_folder(Path(orders["root"]), orders["job_key"])
    return {
        "interfaces": interfaces(),
        "memory_bytes": memory_bytes(),
        "cpus": os.cpu_count(),
        "root_is_memory": is_memory(file_system(folder)[0]),
        "has_stage": bool(orders["prefix"]) and Path(orders["prefix"]).is_dir(),
    }


def stage(orders: Mapping[str, Any], archive: str, transport: str) -> dict[str, Any]:
    """Stage the environment on this node, and say how that went."""
    from envpack.stage.stager import stage as stage_archive

    start = time.time()
    result = stage_archive(
        archive,
        orders["root"],
        jobs=orders["jobs"],
        expected_pack_id=orders["pack_id"],
        transport=transport,
    )
    if transport == "sbcast":
        Path(archive).unlink()  # this node's own copy
    return {"stage": {**result.asdict(), "start": start, "end": time.time()}}


def make_job_folder(root: Path, job_key: str) -> Path:
    """`<root>/mpiboot-<uid>/.jobs/<job key>`, 0700 and ours; refused if someone else made the outer one first.

    Its lock is held as long as this process lives: a folder whose lock is free is left from a job that was killed.
    """
    user_folder(root).mkdir(mode=0o700, exist_ok=True)
    check_trusted(user_folder(root), "directory")
    (user_folder(root) / ".jobs").mkdir(mode=0o700, exist_ok=True)
    # Between another agent's mkdir and its lock, its folder would look like one that a killed job left.
    one_at_a_time = open_lock_file(user_folder(root) / ".jobs.lock")
    wait_for_lock(one_at_a_time)
    try:
        sweep(root)
        folder = job_folder(root, job_key)
        folder.mkdir(mode=0o700, exist_ok=True)
        if lock(folder / LOCK_NAME) is None:
            raise StageError(
                f"another node of this job uses {folder} too: the staging root {root} is on a shared file system. "
                "Set MPIBOOT_STAGE_ROOT to a folder that is local to each node"
            )
    finally:
        os.close(one_at_a_time)
    return folder


def lock(path: Path) -> int | None:
    """A lock as a descriptor, held until that or this process is closed; None where another process has it."""
    descriptor = open_lock_file(path)
    if try_lock(descriptor, path):
        return descriptor
    os.close(descriptor)
    return None


def sweep(root: Path) -> None:
    """End and remove what killed jobs have left on this node."""
    for folder in (user_folder(root) / ".jobs").iterdir():
        with contextlib.suppress(FileNotFoundError):  # its own agent is removing it
            descriptor = lock(folder / LOCK_NAME)
            if descriptor is not None:
                clean(folder, 0.0)
                os.close(descriptor)


def clean(folder: Path, grace_s: float) -> None:
    """Leave nothing of a job on this node: processes, shared memory, its folder."""
    began = (folder / LOCK_NAME).stat().st_mtime
    end_leftovers(folder.name, grace_s)
    others = {key for _, key in marked()} - {folder.name}
    remove_shared_memory(began, spare=PASSED_ON if others else None, dying=leftovers(folder.name))
    for key in others:  # whichever ends last removes what was spared
        with contextlib.suppress(OSError):
            other = folder.parent / key / LOCK_NAME
            os.utime(other, times=(began, min(began, other.stat().st_mtime)))
    shutil.rmtree(folder, ignore_errors=True)


def remove_shared_memory(since: float, spare: str | None = None, dying: Collection[int] = ()) -> None:
    """Remove this user's segments and semaphores of `since` or later that no process of theirs but the `dying` uses.

    Whoever is killed leaves them, and they hold the node's memory; nothing in their names tells whose they are. Those
    whose names begin with `spare` may be another job's.
    """
    candidates = {}
    for entry in SHARED_MEMORY.iterdir():
        if SHARED_MEMORY_NAMES.match(entry.name) and not (spare and entry.name.startswith(spare)):
            with contextlib.suppress(FileNotFoundError):  # whoever made it has just removed it
                found = entry.lstat()
                if found.st_uid == os.getuid() and found.st_ctime >= since - 1:
                    candidates[entry] = found.st_dev, found.st_ino
    used = used_shared_memory(dying) if candidates else set()
    for entry, file in candidates.items():
        if file not in used:
            with contextlib.suppress(OSError):
                entry.unlink()


def used_shared_memory(dying: Collection[int]) -> set[tuple[int, int]]:
    """Device and inode of what the user's other processes have open or mapped there (proc(5), fd and maps).

    Not its name: who made a semaphore has it mapped under the name that it had before its own.
    """
    found = set()
    for pid in process_ids():
        if pid not in dying:
            process = Path(f"/proc/{pid}")
            with contextlib.suppress(OSError):
                for line in (process / "maps").read_text(errors="replace").splitlines():
                    words = line.split(maxsplit=5)
                    if words[5:] and words[5].startswith(f"{SHARED_MEMORY}/"):
                        major, _, minor = words[3].partition(":")
                        found.add((os.makedev(int(major, 16), int(minor, 16)), int(words[4])))
                for handle in (process / "fd").iterdir():
                    with contextlib.suppress(OSError):
                        if str(handle.readlink()).startswith(f"{SHARED_MEMORY}/"):
                            found.add(((opened := handle.stat()).st_dev, opened.st_ino))
    return found


def marked() -> Iterator[tuple[int, str]]:
    """This user's processes on this node that a job's ranks, launcher or command are, or have started; and its key."""
    mark = f"{JOB_KEY_VARIABLE}=".encode()
    for pid in process_ids():
        with contextlib.suppress(OSError):
            if (process := Path(f"/proc/{pid}")).stat().st_uid == os.getuid():
                for variable in (process / "environ").read_bytes().split(b"\0"):
                    if variable.startswith(mark):
                        yield pid, variable[len(mark) :].decode(errors="replace")


def leftovers(job_key: str) -> set[int]:
    """Those of one job."""
    return {pid for pid, key in marked() if key == job_key} - {os.getpid()}


def end_leftovers(job_key: str, grace_s: float) -> None:
    """Wait until the job's processes have ended by themselves, then end the rest: SIGTERM, then SIGKILL."""
    end_all(
        lambda: leftovers(job_key),
        by_themselves_s=grace_s,
        after_term_s=TERM_GRACE_S,
        after_kill_s=KILL_GRACE_S,
    )


def main() -> int:
    orders = json.loads(sys.argv[1])
    folder = job_folder(Path(orders["root"]), orders["job_key"])
    signal.signal(signal.SIGTERM, over)
    # The terminal's and the walltime's signals are boot's to act on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    failed = cancelled = False
    try:
        failed = not answer(orders, lambda: prepare(orders))
        if not failed:
            with contextlib.closing(Ranks(folder, node_name(orders))) as ranks:
                cancelled = not serve(orders, ranks)
    except JobOver:
        cancelled = True
    except BrokenPipeError:
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if folder.is_dir():
        clean(folder, LEFTOVERS_GRACE_S)
    if cancelled or node_name(orders) == orders["first_node"]:
        # Boot does so too, unless it was killed. An agent elsewhere that only lost its connection must not.
        JobDirectory(Path(orders["job_directory"])).clear()
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"node": node_name(orders), "clean": True}), flush=True)
    return int(failed)


def serve(orders: Mapping[str, Any], ranks: Ranks) -> bool:
    """Follow boot's orders, one per line, and keep this node's ranks, until boot is gone.

    Returns
    -------
    bool
        Whether boot's stdin ended. False: nothing was heard of boot for SILENCE_S, its node is lost; the job is
        cancelled then, for with `--no-kill` Slurm would let it run on without its first node.
    """
    partial, silent_s = b"", 0.0
    with selectors.DefaultSelector() as selector:
        for end in (0, ranks.listener):
            selector.register(end, selectors.EVENT_READ)
        while silent_s < SILENCE_S:
            began = time.monotonic()
            ready = {key.fileobj for key, _ in selector.select(HEARTBEAT_S)}
            # A job that was suspended has not been silent meanwhile.
            silent_s += min(time.monotonic() - began, 2 * HEARTBEAT_S)
            if 0 in ready:
                if not (data := os.read(0, 1 << 16)):
                    return True
                silent_s = 0.0
                *lines, partial = (partial + data).split(b"\n")
                for asked in (json.loads(line) for line in lines if line):
                    answer(orders, lambda asked=asked: stage(orders, **asked))  # type: ignore[misc]
            if ranks.listener in ready:
                ranks.adopt()
    if job_id := os.environ.get("SLURM_JOB_ID"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # scancel's own, before what follows it
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if not subprocess.run(["scancel", job_id], stdin=subprocess.DEVNULL, timeout=30).returncode:
                say_why(orders)
    return False


def say_why(orders: Mapping[str, Any]) -> None:
    """The job's last event, in the place of boot: nobody else knows why the job was cancelled."""
    from mpiboot.protocol.events import EventLog

    first = orders["first_node"]
    lost = f"the first node, {first}, is lost: nothing was heard of it for {show_duration(SILENCE_S)}"
    events = EventLog(JobDirectory(Path(orders["job_directory"])).events)
    events.write("closed", reason=lost, detail="", exit_status=1, host=node_name(orders))
    events.close()


def answer(orders: Mapping[str, Any], act: Callable[[], dict[str, Any]]) -> bool:
    """Tell boot, in one line, what came of an order; the one boundary of this process."""
    try:
        said = act()
    except Exception as error:
        # srun passes lines of up to 1024 bytes on whole; longer ones of several nodes may mix.
        said = {"error": (str(error) or type(error).__name__)[:600]}
    print(json.dumps({"node": node_name(orders), **said}, separators=(",", ":")), flush=True)
    return "error" not in said


def over(_number: int, _frame: object) -> NoReturn:
    raise JobOver


if __name__ == "__main__":
    sys.exit(main())
