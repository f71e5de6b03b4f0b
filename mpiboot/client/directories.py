"""Jobs of which only the directories are visible: the batch system's commands are not here, or are another cluster's.

A notebook in a container sees its user's home, and so the job directories. The endpoint in one is enough to connect:
`published` verifies the scheduler by the job's own certificate.

`find` imports this module.
"""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpiboot import config as configuration
from mpiboot.batch.job_state import JobState
from mpiboot.batch.registry import NAMES, facts
from mpiboot.batch.submission import BatchSystem
from mpiboot.batch.system import unknown
from mpiboot.client.published import PublishedEndpoint
from mpiboot.common.trust import check_trusted, open_trusted
from mpiboot.common.units import show_duration
from mpiboot.config import Config
from mpiboot.errors import BatchError, MpibootError
from mpiboot.protocol.events import last_event
from mpiboot.protocol.job_directory import JobDirectory

# Boot changes its heartbeat every few seconds. Clocks differ, and a network file system may show old times for a while.
QUIET_S = 180.0
_MAX_JOB_BYTES = 16 * 1024**2


class JobRecord(NamedTuple):
    """What a job's directory says of the job.

    Attributes
    ----------
    directory : JobDirectory
        The directory.
    heard_at : float or None
        When boot has last changed its heartbeat, in seconds since the epoch; None if the job has ended.
    job_id : str
        The batch system's id of the job.
    nodes : list of str
        Names of its nodes.
    end_time : float or None
        End of the walltime in seconds since the epoch, as known at its start.
    """

    directory: JobDirectory
    heard_at: float | None
    job_id: str
    nodes: list[str]
    end_time: float | None


def read_record(directory: JobDirectory) -> JobRecord | None:
    """Read a job's record; None if the directory cannot be trusted or is damaged."""
    try:
        heard_at = directory.heartbeat.stat().st_mtime if directory.heartbeat.exists() else None
        check_trusted(directory.path, "directory")
        allocation = json.loads(open_trusted(directory.job, _MAX_JOB_BYTES))["allocation"]
        nodes = [str(node["name"]) for node in allocation["nodes"]]
        end_time = allocation["end_time"]
        return JobRecord(
            directory,
            heard_at,
            str(allocation["job_id"]),
            nodes or ["?"],
            None if end_time is None else float(end_time),
        )
    except (OSError, ValueError, TypeError, KeyError, MpibootError):
        return None


class DirectoryBatchSystem:
    """A `BatchSystem` that knows of its jobs what their directories say, and can ask nobody.

    Parameters
    ----------
    name : str
        The batch system's name.
    answering : BatchSystem, optional
        The batch system of that name that answers here: its own jobs are left to it.
    """

    passed_options: tuple[str, ...] = ()

    def __init__(self, name: str, answering: BatchSystem | None = None) -> None:
        self.facts = facts(name)
        self._answering = answering

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def absent(self) -> str:
        return ""

    def _live(self) -> list[JobRecord]:
        """Return the records of the jobs that have not ended in order, the last heard of last."""
        records = [record for record in self._read("*", if_file="heartbeat") if record.heard_at is not None]
        return sorted(records, key=lambda record: record.heard_at or 0.0)

    def _record(self, job_id: str) -> JobRecord | None:
        """Return the record of one job; None if there is none."""
        if "/" in job_id:
            return None
        found = (record for record in self._read(f"*-{glob.escape(job_id)}") if record.job_id == job_id)
        return max(found, key=lambda record: record.heard_at or 0.0, default=None)

    def _read(self, pattern: str, *, if_file: str = "") -> Iterator[JobRecord]:
        """Read the records of the directories with such a name and that file."""
        for path in (configuration.home(os.environ) / "jobs").glob(f"{self.name}-{pattern}"):
            record = read_record(JobDirectory(path)) if (path / if_file).exists() else None
            if record and not self._is_answered(path.name):
                yield record

    def _is_answered(self, key: str) -> bool:
        """Whether the batch system answers here for the job with that directory."""
        try:
            return self._answering is not None and self._answering.job_id_of_key(key) is not None
        except BatchError:
            return False

    def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        records = {job_id: self._record(job_id) for job_id in job_ids}
        return {
            job_id: self._state(record) if record else unknown(job_id) for job_id, record in records.items()
        }

    def _state(self, record: JobRecord) -> JobState:
        try:
            events = record.directory.read_events()
        except MpibootError:
            return unknown(record.job_id)
        # Boot removes its heartbeat before it writes its last event.
        quiet_s = record.directory.quiet_s() if record.heard_at is None else time.time() - record.heard_at
        if last_event(events)["event"] == "closed" or (record.heard_at is None and quiet_s > QUIET_S):
            return unknown(record.job_id)  # `Job` reads how it has ended
        if quiet_s > QUIET_S:
            why = f"nothing was heard of it for {show_duration(quiet_s)}, and {self.facts.title} cannot be asked here"
            return JobState(record.job_id, "", "unknown", "unknown", why)
        first, *others = record.nodes
        return JobState(
            record.job_id,
            "mpiboot",
            "running",
            "running",
            start=events[0]["time"] if events else None,
            end=record.end_time,
            nodes=f"{first} and {len(others)} more" if others else first,
        )

    def ended(self, since: float) -> list[JobState]:
        return []

    def jobs(self, known: Collection[str] = ()) -> list[JobState]:
        return [state for state in map(self._state, self._live()) if state.live]

    def restarts(self, job_id: str) -> int:
        endpoint = JobDirectory(
            configuration.home(os.environ) / "jobs" / self.job_key(job_id)
        ).read_endpoint()
        return endpoint.restart_count if endpoint else 0

    def output(self, job_id: str) -> Path | None:
        return None

    def stop(self, job_id: str, *, by_force: bool = False) -> None:
        """Close the cluster as a client can; boot then ends the job."""
        from distributed import Client

        from mpiboot.client.job import Job

        published = PublishedEndpoint(Job(job_id, self), insecure=True)
        endpoint = None if by_force else published.read()
        if endpoint is None:
            raise BatchError(
                f"job {job_id} cannot be ended from here: {self.facts.title}'s commands are not on this machine",
                f"Type this on a login node: mpiboot stop {job_id}",
            )
        security = published.verify(endpoint)
        with Client(endpoint.address, security=security, set_as_default=False) as client:
            client.shutdown()

    def ended_word(self, exit_status: int) -> str:
        return "ended"

    def job_key(self, job_id: str) -> str:
        record = self._record(job_id)
        return record.directory.key if record else f"{self.name}--{job_id}"

    def job_id_of_key(self, key: str) -> str | None:
        return None  # nothing may be removed for a job that nobody can be asked about

    def job_id_of(self, text: str) -> str | None:
        return text if self._record(text) else None

    def describe(self) -> str:
        return f"{self.facts.title}, whose commands are not on this machine"

    def site(self) -> dict[str, str]:
        return {}

    def submit_command(self, config: Config, script: Path, arguments: Sequence[str], **_: Any) -> list[str]:
        raise self._not_here()

    def submit(self, command: Sequence[str], environ: Mapping[str, str]) -> str:
        raise self._not_here()

    def check(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        raise self._not_here()

    def _not_here(self) -> BatchError:
        return BatchError(
            f"{self.facts.title}'s commands are not on this machine", "Type this on a login node"
        )


def directory_batch_systems(answering: Mapping[str, BatchSystem]) -> list[DirectoryBatchSystem]:
    """Return the batch systems whose jobs' directories may be visible here.

    Parameters
    ----------
    answering : mapping of str to BatchSystem
        Those that answer here, by name; a batch system of this machine alone has no jobs elsewhere.
    """
    return [DirectoryBatchSystem(name, answering.get(name)) for name in NAMES if facts(name).command]


def missing_titles(available: Collection[str]) -> str:
    """Return the names of the batch systems whose commands this machine lacks, for a message."""
    return " and ".join(facts(name).title for name in NAMES if name not in available)
