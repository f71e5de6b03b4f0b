"""What a job does now, in words: from the batch system's state and the job's events."""

from __future__ import annotations

import time
from typing import Any

from mpiboot.batch.job_state import JobState

STARTING = "starting"
# Clocks of nodes differ. A batch system takes longer than this to start a job again.
CLOCKS_DIFFER_S = 60.0
WORDS = {
    "stage": STARTING,
    "pack": "packing the environment",
    "agents": "starting agents on its nodes",
    "launch": "launching",
    "workers": "starting workers",
    "closing": "closing",
}


def progress_of(events: list[dict[str, Any]], start: float | None = None) -> str:
    """Return the last step in a job's events, in words.

    Parameters
    ----------
    events : list of dict
        The job's events.
    start : float, seconds since the epoch, optional
        When the job started last: events of an earlier run do not count.
    """
    since = (start or 0.0) - CLOCKS_DIFFER_S
    steps = [
        event
        for event in events
        if event["event"] in ("phase", "step", "worker", "lost-worker") and event.get("time", since) >= since
    ]
    if not steps:
        return STARTING
    last = steps[-1]
    phases = [event for event in steps if event["event"] == "phase"]
    phase = str(phases[-1]["phase"]) if phases else ""
    if phase == "workers":
        expected = phases[-1].get("n_workers")
        counted = f": {last['n']}" + (f" of {expected}" if expected else "") if "n" in last else ""
        return WORDS[phase] + counted
    if last["event"] == "step" and last["step"] == "copy":
        return f"staging the environment on {last['n_lacking']} of {last['n_nodes']} nodes"
    word = str(last["step"]) if last["event"] == "step" else phase
    return WORDS.get(word, word)


def waiting(state: JobState) -> str:
    """Return the state of a pending job, why it waits, and when it may start."""
    start = f", may start {time.strftime('%a %H:%M', time.localtime(state.start))}" if state.start else ""
    return f"{state.state} ({state.reason or 'no reason given'}{start})"


def connect_command(job_id: str, insecure: bool) -> str:
    """Return the command that waits for a job."""
    return f"mpiboot connect {job_id}{' --insecure' if insecure else ''}"
