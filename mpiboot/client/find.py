"""Finds jobs again: by id, by name, the live ones; and clears what ended jobs have left."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence

from mpiboot import config as configuration
from mpiboot.batch import BatchSystem, JobState, batch_systems
from mpiboot.batch.local.submission import parse_job_id
from mpiboot.client.job import Job
from mpiboot.client.polling import FIRST_SILENCE_S, patiently
from mpiboot.common.trust import check_trusted
from mpiboot.errors import (
    BatchError,
    MpibootError,
)
from mpiboot.protocol.job_directory import JobDirectory

logger = logging.getLogger(__name__)


# What no batch system knows any more counts as ended when it has been quiet for so long.
FORGOTTEN_S = 86400.0


def find_job(wanted: str | Job | None = None) -> Job:
    """A job by id, by `--job-name`, or the only live one.

    Raises
    ------
    BatchError
        None is live, or several are: the message lists them.
    """
    if isinstance(wanted, Job):
        return wanted
    systems = batch_systems()
    with contextlib.suppress(BatchError):  # a local job's id is nothing to ask another batch system about
        parse_job_id(wanted or "")
        local = Job(str(wanted).removeprefix("local-"), systems["local"])
        if local.directory.path.is_dir():
            return local
    live = live_jobs()
    if wanted is None:
        if not live:
            raise BatchError("no job of mpiboot's is pending or running here. Start one: mpiboot submit")
        if len(live) > 1:
            raise BatchError(f"several jobs are live; name one of them:\n{describe(live)}")
        return live[0][0]
    by_name = [job for job, state in live if state.name == wanted]
    if len(by_name) > 1:
        raise BatchError(f"several live jobs are named {wanted}; give a job id:\n{describe(live)}")
    if by_name:
        return by_name[0]
    if wanted.isdigit() and "slurm" in systems:
        return _known(patiently(lambda: Job(wanted, systems["slurm"]), FIRST_SILENCE_S))
    try:
        parse_job_id(wanted)
    except BatchError as error:
        raise BatchError(
            f"{wanted!r} is neither a job id nor the name of a live job. Live ones: mpiboot list"
        ) from error
    return _known(Job(wanted.removeprefix("local-"), systems["local"]))


def _known(job: Job) -> Job:
    """The job, unless nobody has ever heard of it: a mistyped id must not look like one that has ended."""
    if not job.directory.path.exists() and job.ask().state == "UNKNOWN":
        raise BatchError(f"no job {job.job_id} is known here. Live ones: mpiboot list")
    return job


def live_jobs(patience_s: float = FIRST_SILENCE_S) -> list[tuple[Job, JobState]]:
    """This user's live jobs of all batch systems here, oldest first.

    Of a batch system that cannot be asked, that is said: a machine may have Slurm's commands and no Slurm.

    Raises
    ------
    BatchError
        One cannot be asked, and the others have no job.
    """
    unclear = unclear_directories()  # before the question: a job may start meanwhile
    found: list[tuple[Job, JobState]] = []
    failed: list[BatchError] = []
    for batch in batch_systems().values():
        try:
            states = patiently(batch.jobs, patience_s)
            live = [(Job(state.job_id, batch), state) for state in states]
            found += live
            spared = {job.directory.path for job, _ in live}
            clear_ended([directory for directory in unclear if directory.path not in spared], batch)
        except BatchError as error:
            failed.append(error)
    if failed and not found:
        raise failed[0]
    for failure in failed:
        logger.warning("%s; only other jobs are known", failure)
    return found


def unclear_directories() -> list[JobDirectory]:
    """The job directories with secrets in them."""
    found = map(JobDirectory, (configuration.home(os.environ) / "jobs").glob("*-*"))
    return [directory for directory in found if not directory.is_clear()]


def clear_ended(directories: Sequence[JobDirectory], batch: BatchSystem) -> None:
    """Remove the secrets of jobs that have ended and left them: their first node was lost, say.

    They open nothing any more; so whatever keeps them from being removed is no reason to fail.
    """
    with contextlib.suppress(MpibootError, OSError):
        found = {job_id: each for each in directories if (job_id := batch.job_id(each.key))}
        states = batch.states(list(found)) if found else {}
        for job_id, directory in found.items():
            # Forgotten by the batch system is not ended: such a job has been quiet for a day, too.
            forgotten = states[job_id].state == "UNKNOWN" and not states[job_id].reason
            if not states[job_id].live and (not forgotten or directory.quiet_s() > FORGOTTEN_S):
                check_trusted(directory.path, "directory")
                directory.clear()


def describe(live: Sequence[tuple[Job, JobState]]) -> str:
    """A line for each of several jobs."""
    return "\n".join(
        f"  {job.job_id}  {state.name}  {state.state}  {state.nodes or state.reason}".rstrip()
        for job, state in live
    )
