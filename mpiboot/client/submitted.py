"""Records of submitted jobs: files that submit leaves, so that a pending job is known whatever the site makes of it.

The record of a job that ended before its boot made a job directory is kept, with how it ended.

Only the client imports this module.
"""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

from envpack.common.trust import make_private_folder
from mpiboot.batch.job_state import JobState
from mpiboot.common.trust import open_trusted
from mpiboot.errors import MpibootError
from mpiboot.protocol.job_directory import write_atomic

SUBMITTED = "submitted"
ENDED = "ended"
_MAX_STATE_BYTES = 64 * 1024


def record(home: Path, key: str) -> None:
    """Record that mpiboot has submitted the job with this key; `find.clear_ended` removes the record.

    Raises
    ------
    OSError
        The record could not be written.
    """
    folder = home / SUBMITTED
    make_private_folder(folder)
    (folder / key).touch(mode=0o600)


def records(home: Path) -> dict[str, Path]:
    """Return the record of each submitted job that is not known to have ended, by the job's key."""
    return {path.name: path for path in (home / SUBMITTED).glob("*-*")}


def keep_ended(home: Path, key: str, state: JobState) -> None:
    """Keep how a job with this key ended that has no job directory.

    Raises
    ------
    OSError
        The record could not be written.
    """
    folder = home / ENDED
    make_private_folder(folder)
    write_atomic(folder / key, asdict(replace(state, end=state.end or time.time())))


def read_ended(home: Path, key: str) -> JobState | None:
    """Return what `keep_ended` has written; None if there is nothing that can be trusted."""
    try:
        return JobState(**json.loads(open_trusted(home / ENDED / key, _MAX_STATE_BYTES)))
    except (OSError, ValueError, TypeError, MpibootError):
        return None
