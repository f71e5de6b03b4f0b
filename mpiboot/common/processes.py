"""Processes of this host: reads their state from /proc, and ends them.

Client, boot and agent may import this module; it imports no other of mpiboot.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_POLL_S = 0.02


class ProcessStat(NamedTuple):
    """One line of `/proc/<pid>/stat` (proc_pid_stat(5)).

    Attributes
    ----------
    state : str
        One letter; `Z` is a process that has ended and waits for its parent.
    parent : int
        Process id of its parent.
    start : str
        When it started, in clock ticks since the host booted. Process id and start together identify a process: ids are
        reused.
    """

    state: str
    parent: int
    start: str


def process_ids() -> Iterator[int]:
    """Yield the process ids of all processes of this host."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - one list, no Path for each


def process_stat(pid: int) -> ProcessStat | None:
    """Return the state of a process; None if there is no such process, or if it has ended and waits for its parent."""
    try:
        # The name, in parentheses, may hold spaces and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else ProcessStat(fields[0], int(fields[1]), fields[19])


def process_start(pid: int) -> str | None:
    """Return `ProcessStat.start` of a process; None if it has ended."""
    stat = process_stat(pid)
    return stat and stat.start


def host_memory_bytes() -> int:
    """Return the memory of this host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def host_identity() -> str:
    """Return a text that is equal in two processes only if they have the same host and pid namespace."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id}-{Path('/proc/self/ns/pid').stat().st_ino}"


def descendants(pid: int) -> set[int]:
    """Return the process ids of all living descendants of a process."""
    parents = {process: stat.parent for process in process_ids() if (stat := process_stat(process))}
    family = {pid}
    while children := {child for child, parent in parents.items() if parent in family} - family:
        family |= children
    return family - {pid}


def keep_orphans() -> None:
    """Make orphans of our children our own children, so that none can outlive the job unseen."""
    import ctypes  # only boot needs it; agents must import few modules

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(own: Collection[int]) -> None:
    """Release the children that have ended and that `keep_orphans` made ours: nothing else waits for them.

    Parameters
    ----------
    own : collection of int
        Process ids of the children that this process has started, and waits for itself.
    """
    try:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return
    for pid in map(int, children):
        if pid not in own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def end_all(
    living: Callable[[], Collection[int]],
    *,
    by_themselves_s: float = 0.0,
    after_term_s: float,
    after_kill_s: float,
) -> None:
    """Wait until processes have ended by themselves; then send them SIGTERM, and at last SIGKILL.

    Parameters
    ----------
    living : callable
        Returns the process ids of those that have not ended yet; called repeatedly.
    by_themselves_s : float, seconds, default 0
        How long to wait before the first signal.
    after_term_s, after_kill_s : float, seconds
        How long to wait at most after each signal.
    """
    for number, wait_s in (
        (None, by_themselves_s),
        (signal.SIGTERM, after_term_s),
        (signal.SIGKILL, after_kill_s),
    ):
        pids = living()
        if number:
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
        deadline = time.monotonic() + wait_s
        while pids and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            pids = living()
        if not pids:
            return


def end(process: "subprocess.Popen[bytes]", by_itself_s: float, grace_s: float = 5.0) -> int:
    """End a child process as `end_all` does.

    Parameters
    ----------
    process : subprocess.Popen
        The child.
    by_itself_s : float, seconds
        How long to wait before SIGTERM.
    grace_s : float, seconds, default 5
        How long to wait between SIGTERM and SIGKILL.

    Returns
    -------
    int
        Its exit status, as of `Popen.wait`.
    """
    end_all(
        lambda: () if process.poll() is not None else (process.pid,),
        by_themselves_s=by_itself_s,
        after_term_s=grace_s,
        after_kill_s=0.0,
    )
    return process.wait()


def end_descendants(grace_s: float = 1.0, spare: int | None = None) -> None:
    """End every descendant of this process.

    Parameters
    ----------
    grace_s : float, seconds, default 1
        How long to wait at most after SIGTERM, and again after SIGKILL.
    spare : int, optional
        Process id of a child that is not ended, nor are its descendants.
    """

    def living() -> set[int]:
        return descendants(os.getpid()) - (descendants(spare) | {spare} if spare else set())

    end_all(living, after_term_s=grace_s, after_kill_s=grace_s)
