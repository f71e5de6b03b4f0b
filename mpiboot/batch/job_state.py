"""`JobState`: what a batch system says of a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# `unknown`: the batch system does not know the job, or no longer. Whether it ever ran is then to be seen elsewhere.
Phase = Literal["pending", "running", "ended", "unknown"]


@dataclass(frozen=True)
class JobState:
    """What the batch system says of a job.

    Attributes
    ----------
    job_id, name : str
        The batch system's id of the job, and the name that its user gave it.
    phase : "pending", "running", "ended" or "unknown"
        What mpiboot decides by. A job whose state mpiboot does not know is `running`, never `ended`.
    state : str
        The batch system's own word, shown to users.
    reason : str
        Why a pending job waits, or how an ended one ended.
    start, end : float or None
        When the job started and will end, or is expected to, in seconds since the epoch.
    nodes : str
        The job's nodes, as the batch system writes them.
    cannot_start : bool
        Whether the batch system says of a pending job that it will not start unless somebody changes it.
    suspended : bool
        Whether a pending job has run, and its processes wait to go on.
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
        """The state, and the reason in parentheses if there is one."""
        return f"{self.state}{f' ({self.reason})' if self.reason else ''}"
