"""Lists the jobs that have ended in the last days, with how they ended: from their directories and the batch system."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Collection
from dataclasses import replace

from mpiboot import config as configuration
from mpiboot.batch.job_state import JobState
from mpiboot.batch.registry import available
from mpiboot.batch.system import unknown
from mpiboot.client.gc import Leftover, leftovers
from mpiboot.client.job import Job
from mpiboot.common.trust import open_trusted
from mpiboot.errors import BatchError, MpibootError

logger = logging.getLogger(__name__)

LISTED_S = 7 * 86400.0
LISTED_JOBS = 100
_MAX_JOB_BYTES = 16 * 1024**2


def past_jobs(live: Collection[str] = ()) -> list[tuple[Job, JobState]]:
    """Return this user's jobs that have ended in the last days, at most `LISTED_JOBS`, the oldest first.

    Logs a warning for each batch system that does not answer.

    Parameters
    ----------
    live : collection of str
        The names of the live jobs' directories.
    """
    home = configuration.home(os.environ)
    found: list[tuple[Job, JobState]] = []
    for batch in available().values():
        try:
            left = [
                each
                for each in leftovers(home, batch)
                if each.job.directory.key not in live and time.time() - each.changed_at < LISTED_S
            ][:LISTED_JOBS]
            states = batch.states([each.job.job_id for each in left]) if left else {}
        except BatchError as error:
            logger.warning("%s; how jobs of %s have ended is not known", error.problem, batch.name)
            continue
        found += [
            (each.job, _explained(each, state))
            for each in left
            if not (state := states.get(each.job.job_id) or unknown(each.job.job_id)).live
        ]
    return sorted(found, key=lambda pair: pair[1].end or 0.0)[-LISTED_JOBS:]


def _explained(left: Leftover, state: JobState) -> JobState:
    """Return the state of an ended job with its name, and when and why it ended."""
    state = left.job.explained(state)
    closed = left.job.end_event()
    ended_at = float(closed["time"]) if closed else state.end or left.changed_at
    return replace(state, name=state.name or _name(left), end=ended_at)


def _name(left: Leftover) -> str:
    """Return the name that a job's user gave it; "" if its directory does not tell."""
    try:
        return str(
            json.loads(open_trusted(left.job.directory.job, _MAX_JOB_BYTES))["asked"]["job_name"] or ""
        )
    except (OSError, ValueError, TypeError, KeyError, MpibootError):
        return ""
