"""Finds a job by id or name, lists the live jobs, and removes what ended jobs have left: secrets, leases of archives."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from mpiboot import config as configuration
from mpiboot.batch.job_state import JobState
from mpiboot.batch.registry import available
from mpiboot.batch.submission import BatchSystem
from mpiboot.client.directories import QUIET_S, directory_batch_systems, missing_titles
from mpiboot.client.job import Job
from mpiboot.client.polling import FIRST_SILENCE_S, retry_while_away
from mpiboot.client.submitted import ENDED, SUBMITTED, keep_ended, records
from mpiboot.common.processes import host_identity
from mpiboot.common.trust import check_trusted
from mpiboot.errors import BatchError, MpibootError, UsageError
from mpiboot.protocol.channel_messages import ChannelAddress
from mpiboot.protocol.job_directory import JobDirectory

logger = logging.getLogger(__name__)

# A job that no batch system knows counts as ended when its directory has not changed for this long.
FORGOTTEN_S = 86400.0
# The name of doctor's job: who names no job means another one.
DOCTORS_JOB = "mpiboot-doctor"


def find_job(wanted: str | int | Job | None = None) -> Job:
    """Return a job by its id (a number, too) or its name; None: the only live one.

    Raises
    ------
    BatchError
        There is no such job, or there are several (the message lists them), or the batch system does not answer.
    """
    if isinstance(wanted, Job):
        return wanted
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, str | int)):
        raise UsageError(
            f"{wanted!r} is neither a job id nor a name", "Give a text, such as '1234', or a Job"
        )
    wanted = None if wanted is None else str(wanted)
    by_id, errors = ([], []) if wanted is None else _by_id(wanted)
    for job in by_id:
        if job.directory.path.is_dir():
            return job
    for job in by_id:
        _refuse_another_clusters(job)
    if errors and not by_id:  # it has been asked for long enough
        raise errors[0]
    live = live_jobs()
    if wanted is None:
        if not live:
            raise BatchError(
                "no mpiboot job is pending or running",
                "Start one: mpiboot submit; see those that have ended: mpiboot list --all",
            )
        live = [each for each in live if each[1].name != DOCTORS_JOB] or live
        if len(live) > 1:
            raise BatchError(
                f"several jobs are live:\n{describe(live)}", f"Give a job id, such as {live[0][0].job_id}"
            )
        return live[0][0]
    by_name = [job for job, state in live if state.name == wanted]
    if len(by_name) > 1:
        raise BatchError(
            f"several live jobs are named {wanted}:\n{describe(live)}",
            f"Give a job id, such as {by_name[0].job_id}",
        )
    if by_name:
        return by_name[0]
    for job in by_id:
        # An unknown id may be mistyped: do not report it as a job that has ended.
        if job.ask().phase != "unknown":
            return job
    if errors:
        raise errors[0]
    if by_id:
        raise BatchError(f"there is no job {wanted} here", "See the live ones: mpiboot list")
    remedy = "See the live ones: mpiboot list"
    if missing := missing_titles(available()):
        jobs = configuration.home(os.environ) / "jobs"
        remedy += f". The commands of {missing} are not on this machine, and {jobs} has no job of that name"
    raise BatchError(f"{wanted!r} is neither a job id nor the name of a live job", remedy)


def _refuse_another_clusters(job: Job) -> None:
    """Refuse an id that another cluster, which shares this home, has given to a job: here it means a different job.

    Raises
    ------
    BatchError
        A job of that id has run, or was submitted, on another cluster only.
    """
    home = configuration.home(os.environ)
    own, name = job.directory.key, f"{job.batch.name}-*-{job.job_id}"
    known = {path.name for folder in ("jobs", SUBMITTED, ENDED) for path in (home / folder).glob(name)}
    if known and own not in known:
        raise BatchError(
            f"job {job.job_id} is not one of this host's cluster, but {sorted(known)[0]}",
            "Type this on a login node of that cluster",
        )


def _by_id(text: str) -> tuple[list[Job], list[BatchError]]:
    """Return the jobs that `text` may be the id of, one for each batch system here that has such ids.

    Also returns the errors of the batch systems that do not answer: another batch system may have the job.
    """
    jobs: list[Job] = []
    errors: list[BatchError] = []
    systems = available()
    for batch in list(systems.values()):
        if (job_id := batch.job_id_of(text)) is not None:
            try:
                # The name of the job's directory contains the cluster's name, for which the batch system may be queried.
                jobs.append(retry_while_away(functools.partial(Job, job_id, batch), FIRST_SILENCE_S))
            except BatchError as error:
                errors.append(error)
                del systems[batch.name]
    jobs += [Job(text, other) for other in directory_batch_systems(systems) if other.job_id_of(text)]
    return jobs, errors


def live_jobs(patience_s: float = FIRST_SILENCE_S) -> list[tuple[Job, JobState]]:
    """Return this user's live jobs of all batch systems here, the oldest first.

    Logs a warning for each batch system that does not answer: a machine may have the commands of a batch system that is
    not running.

    Parameters
    ----------
    patience_s : float, seconds
        How long to retry if a batch system does not answer.

    Raises
    ------
    BatchError
        A batch system does not answer, and the others have no job.
    """
    to_clear = directories_to_clear()  # before the query: a job may start meanwhile
    jobs: list[tuple[Job, JobState]] = []
    errors: list[BatchError] = []
    systems, away = available(), set[str]()
    for batch in systems.values():
        try:
            live = retry_while_away(functools.partial(_live_jobs_of, batch, to_clear), patience_s)
            jobs += live
            live_paths = {job.directory.path for job, _ in live}
            clear_ended([each for each in to_clear if each.path not in live_paths], batch)
        except BatchError as error:
            errors.append(error)
            away.add(batch.name)
    # Of a batch system that does not answer, and of other clusters, the directories are visible all the same.
    answering = {name: batch for name, batch in systems.items() if name not in away}
    for other in directory_batch_systems(answering):
        jobs += [(Job(state.job_id, other), state) for state in other.jobs()]
    if errors and not jobs:
        raise errors[0]
    for each in errors:
        logger.warning("%s; only jobs of other batch systems are known", each.problem)
    return jobs


def _live_jobs_of(batch: BatchSystem, recorded: Sequence[JobDirectory]) -> list[tuple[Job, JobState]]:
    """Return the live jobs of one batch system, which is asked for them and for the cluster's name."""
    known = [job_id for each in recorded if (job_id := batch.job_id_of_key(each.key))]
    return [(Job(state.job_id, batch), state) for state in batch.jobs(known)]


def directories_to_clear() -> list[JobDirectory]:
    """Return the directories of jobs, live or ended, that hold secrets, have a lease of an archive or are on record.

    A pending job has a lease and a record, but its directory does not exist yet.
    """
    from envpack.pack.store import leases

    home = configuration.home(os.environ)
    directories = map(JobDirectory, (home / "jobs").glob("*-*"))
    keys = {directory.key for directory in directories if not directory.is_clear()} | leases(home).keys()
    keys |= records(home).keys()
    return [JobDirectory(home / "jobs" / key) for key in sorted(keys)]


def clear_ended(directories: Sequence[JobDirectory], batch: BatchSystem) -> None:
    """Remove leases and records of ended jobs, and secrets that a job could not remove, as after the loss of a node.

    Errors are ignored, since these secrets no longer give access to anything.
    """
    from envpack.pack.store import leases

    with contextlib.suppress(MpibootError, OSError):
        by_id = {job_id: each for each in directories if (job_id := batch.job_id_of_key(each.key))}
        states = batch.states(list(by_id)) if by_id else {}
        home = configuration.home(os.environ)
        leases_of, record_of = leases(home), records(home)
        for job_id, directory in by_id.items():
            if not states[job_id].live:
                with contextlib.suppress(MpibootError, OSError):
                    key = directory.key
                    _clear(directory, states[job_id], leases_of.get(key, []), record_of.get(key))


def _clear(directory: JobDirectory, state: JobState, leases: Sequence[Path], record: Path | None) -> None:
    """Remove the secrets of a job that is not live, its leases and its record, unless it may run all the same."""
    started = directory.path.exists()
    left = [*leases, *filter(None, [record])]
    # A job that the batch system no longer knows may still run.
    if state.phase == "unknown" and not state.reason:
        submitted = max((path.stat().st_mtime for path in left), default=0.0)
        quiet_s = directory.quiet_s() if started else time.time() - submitted
        if quiet_s <= FORGOTTEN_S:
            return
    if started:
        check_trusted(directory.path, "directory")
        if state.phase == "unknown" and _lives_elsewhere(directory):
            return
        directory.clear()
    for path in left:
        path.unlink(missing_ok=True)
    if record and not started:  # the last: where there is no room for it, the lease must go all the same
        keep_ended(configuration.home(os.environ), directory.key, state)


def _lives_elsewhere(directory: JobDirectory) -> bool:
    """Whether boot runs where its process cannot be seen, such as in another container with this host's name."""
    try:
        address = ChannelAddress.from_json(directory.channel.read_bytes())
        quiet_s = time.time() - directory.heartbeat.stat().st_mtime
    except (OSError, MpibootError):
        return False
    return address.host_identity != host_identity() and quiet_s < QUIET_S


def describe(live: Sequence[tuple[Job, JobState]]) -> str:
    """Return one line per job, for a message that lists several jobs."""
    return "\n".join(
        f"  {job.job_id}  {state.name}  {state.state}  {state.nodes or state.reason}".rstrip()
        for job, state in live
    )
