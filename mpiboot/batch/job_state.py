"""`JobState`: the state of a job, as reported by its batch system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# `unknown`: the batch system does not know the job, or has forgotten it; only the job directory shows whether it ran.
Phase = Literal["pending", "running", "ended", "unknown"]


@dataclass(frozen=True)
class JobState:
    """The state of a job, as reported by its batch system.

    Attributes
    ----------
    job_id, name : str
        The batch system's id of the job, and the name that its user gave it.
    phase : "pending", "running", "ended" or "unknown"
        The state on which mpiboot bases decisions. A job in a state that mpiboot does not know is `running`, never
        `ended`.
    state : str
        The batch system's own word, shown to users.
    reason : str
        Why a pending job waits, or how a job ended.
    start, end : float or None
        When the job started and will end, or is expected to, in seconds since the epoch.
    nodes : str
        The job's nodes, as the batch system writes them.
    cannot_start : bool
        Whether a pending job will not start, according to the batch system, unless somebody changes it.
    suspended : bool
        Whether a pending job has run, and its suspended processes still exist.
    """

    job_id: str
    name: str
    phase: Phase
    state: str
    reason: str = ""
    start: float | None = None
    end: float | None = None
    nodes: str = ""
    cannot_start: bool = False
    suspended: bool = False

    @property
    def pending(self) -> bool:
        return self.phase == "pending"

    @property
    def running(self) -> bool:
        return self.phase == "running"

    @property
    def live(self) -> bool:
        return self.pending or self.running

    @property
    def restarting(self) -> bool:
        """Whether a job that ran before waits to run from its start again."""
        return self.pending and not self.suspended

    def show(self) -> str:
        """Return the state, with the reason in parentheses if there is one."""
        return f"{self.state}{f' ({self.reason})' if self.reason else ''}"
