"""Ending processes that we started, and those that they left behind. Standard library only."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def keep_orphans() -> None:
    """Make orphans of our children our own children, so that none can outlive the job unseen."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end(process: "subprocess.Popen[bytes]", by_itself_s: float, grace_s: float = 5.0) -> int:
    """A child's exit status: it ends by itself, else by SIGTERM, else, after a grace, by SIGKILL."""
    for ask, timeout_s in ((None, by_itself_s), (process.terminate, grace_s), (process.kill, None)):
        if ask:
            ask()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout_s)
    raise AssertionError("unreachable: the last wait has no end")


def descendants(pid: int) -> set[int]:
    """All living descendants of a process, from /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "stat").read_text().rpartition(")")[2].split()
                if words[0] != "Z":
                    parents[int(entry.name)] = int(words[1])
    found = {pid}
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found - {pid}


def end_descendants(grace_s: float = 1.0, spare: int | None = None) -> None:
    """End every descendant of this process: SIGTERM, and after the grace SIGKILL.

    `spare` names a child that is left alone, with its own descendants.
    """

    def left() -> set[int]:
        return descendants(os.getpid()) - (descendants(spare) | {spare} if spare else set())

    for number in (signal.SIGTERM, signal.SIGKILL):
        if not (found := left()):
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + grace_s
        while left() and time.monotonic() < deadline:
            time.sleep(0.02)


def process_start(pid: int) -> str | None:
    """A process's start in ticks since boot: with the pid it names a process for good. None: it has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] == "Z" else words[19]
