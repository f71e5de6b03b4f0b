"""Batch systems: each submits a job, says its state and reason, and stops it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mpiboot.errors import BatchError

if TYPE_CHECKING:
    from mpiboot.config import Config

PENDING = frozenset(
    (
        *("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"),
        *("SPECIAL_EXIT", "SUSPENDED", "RESIZING"),
    )
)
RUNNING = frozenset(("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED"))


@dataclass(frozen=True)
class JobState:
    """What the batch system says of a job, in Slurm's words.

    `reason` says why a pending job waits or how an ended one ended. `start` and `end` are seconds since the epoch, when
    it started and will end (or is expected to), or None. `never` is True where the batch system says of a pending
    job that it will not start unless somebody changes it.
    """

    job_id: str
    name: str
    state: str
    reason: str = ""
    start: float | None = None
    end: float | None = None
    nodes: str = ""
    never: bool = False

    @property
    def pending(self) -> bool:
        return self.state in PENDING

    @property
    def restarting(self) -> bool:
        """Of a job that has run: it was requeued, and waits. Not one that was suspended, whose processes are there."""
        return self.pending and self.state not in ("SUSPENDED", "RESIZING")

    @property
    def running(self) -> bool:
        return self.state in RUNNING

    @property
    def live(self) -> bool:
        return self.pending or self.running

    def show(self) -> str:
        """`PENDING (Resources)`."""
        return f"{self.state}{f' ({self.reason})' if self.reason else ''}"


class BatchSystem(Protocol):
    """The few questions that mpiboot asks of a batch system."""

    name: str

    def submit_command(self, config: Config, script: Path, arguments: Sequence[str], log: Path) -> list[str]:
        """The command that submits `script` with `arguments`; a user could type it."""

    def submit(self, command: Sequence[str], environ: Mapping[str, str]) -> str:
        """Run that command; the new job's id."""

    def check(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Refuse, before the work of packing, what `submit` would refuse at any time."""

    def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """Each job's state, by one question; `UNKNOWN` when the batch system has forgotten it."""

    def restarts(self, job_id: str) -> int:
        """How often the job was requeued; what an earlier run of it has published is void."""

    def output(self, job_id: str) -> Path | None:
        """Where the job's output goes; None when the batch system has forgotten it."""

    def jobs(self) -> list[JobState]:
        """This user's live jobs that mpiboot submitted, newest last."""

    def stop(self, job_id: str, *, by_force: bool = False) -> None:
        """Ask the job to end, or end it; returns at once."""

    def job_key(self, job_id: str) -> str:
        """The name of the job's directory."""

    def job_id(self, key: str) -> str | None:
        """Whose directory has that name; None where that cannot be asked here."""


def batch_systems() -> dict[str, BatchSystem]:
    """Those that this machine has."""
    from mpiboot.batch.local.submission import Local
    from mpiboot.batch.slurm.submission import Slurm

    found: dict[str, BatchSystem] = {}
    if shutil.which("sbatch"):
        found["slurm"] = Slurm()
    found["local"] = Local()
    return found


def choose(name: str) -> BatchSystem:
    """The batch system of that name; `auto` is Slurm where there is one, else this machine.

    Raises
    ------
    BatchError
        It is not there.
    """
    found = batch_systems()
    if name == "auto":
        return next(iter(found.values()))
    if name not in found:
        raise BatchError(
            f"--batch-system {name}: sbatch is not on the PATH of this machine. Type this on a login node, "
            "or use --batch-system local"
        )
    return found[name]
