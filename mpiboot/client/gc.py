"""Removes what ended jobs have left on the shared file system: their directories, their logs, and old archives.

`mpiboot gc` removes all of it. `submit` keeps the newest `KEPT_JOBS` jobs, and none that ended more than `KEPT_S` ago.
A job counts as ended only if that is certain. What belongs to another cluster, another host or another user is kept, and
links are never followed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpiboot import config as configuration
from mpiboot.batch.job_state import JobState
from mpiboot.batch.registry import available
from mpiboot.batch.submission import BatchSystem
from mpiboot.client.find import FORGOTTEN_S, clear_ended, directories_to_clear
from mpiboot.client.job import Job
from mpiboot.client.polling import FIRST_SILENCE_S, retry_while_away
from mpiboot.client.submitted import ENDED
from mpiboot.common.units import show_duration
from mpiboot.errors import BatchError, MpibootError
from mpiboot.protocol.job_directory import JobDirectory

logger = logging.getLogger(__name__)

KEPT_JOBS = 50
KEPT_S = 30 * 86400.0
# Boot writes its sign of life every few seconds. A job that recorded no end may run if its directory has changed since:
# two clusters can have the same name and the same home.
QUIET_S = 600.0
# How many jobs one query names, and how many one submit removes.
JOBS_PER_QUERY = 500


@dataclass(frozen=True)
class Leftover:
    """The files of one job.

    Attributes
    ----------
    job : Job
        The job.
    directory, log, record : Path or None
        Its directory, the log that the batch system wrote below mpiboot's home, and the record of a job that ended
        before its boot; None: there is none.
    changed_at : float, seconds since the epoch
        When the job's last event was written; if it has no events, when its directory, log or record was changed.
    """

    job: Job
    directory: Path | None
    log: Path | None
    record: Path | None
    changed_at: float


@dataclass(frozen=True)
class Removal:
    """One removed path.

    Attributes
    ----------
    path : Path
        What was removed.
    size_bytes : int
        Its size.
    owner : str
        Whose it was, such as `job 1234`.
    problem : str
        Why it could not be removed; "" if it is gone.
    """

    path: Path
    size_bytes: int
    owner: str
    problem: str = ""


def gc(older_than_s: float = 0.0, *, dry_run: bool = False) -> Iterator[Removal]:
    """Remove the directories and logs of ended jobs, and archives that neither a job nor a next submit needs.

    Logs a warning for each batch system that does not answer; what its jobs have left is kept.

    Parameters
    ----------
    older_than_s : float, seconds, default 0
        Keep what ended, or was last used, within this time.
    dry_run : bool, default False
        Remove none of these. (Secrets and leases of ended jobs go, as with every command.)

    Yields
    ------
    Removal
        Each path that was removed or, with `dry_run`, that would be.
    """
    from envpack.pack.store import gc as remove_archives

    home = configuration.home(os.environ)
    to_clear = directories_to_clear()
    for batch in available().values():
        clear_ended(to_clear, batch)  # a lease keeps an archive
        try:
            left = retry_while_away(functools.partial(leftovers, home, batch), FIRST_SILENCE_S)
            for each in ended(left, batch, older_than_s):
                yield from remove(each, dry_run=dry_run)
        except BatchError as error:
            logger.warning("%s; what jobs of %s have left is kept", error.problem, batch.name)
    for path, size_bytes in remove_archives(home, older_than_s=older_than_s, dry_run=dry_run).items():
        yield Removal(path, size_bytes, "archive")


def bound(batch: BatchSystem) -> None:
    """Remove what the oldest ended jobs have left, beyond `KEPT_JOBS` and `KEPT_S`. Errors are ignored."""
    with contextlib.suppress(MpibootError, OSError):
        left = leftovers(configuration.home(os.environ), batch)
        old = [
            each for n, each in enumerate(left) if n >= KEPT_JOBS or time.time() - each.changed_at > KEPT_S
        ]
        for each in ended(old[-JOBS_PER_QUERY:], batch):
            for _ in remove(each):
                pass


def leftovers(home: Path, batch: BatchSystem) -> list[Leftover]:
    """Return the files of all jobs of this cluster (for the local batch system: of this host), the newest first.

    Raises
    ------
    BatchError
        The batch system does not answer.
    """
    directories: dict[str, tuple[Path, float]] = {}
    elsewhere: list[str] = []
    for path, status in _own_entries(home / "jobs", stat.S_ISDIR):
        if job_id := batch.job_id_of_key(path.name):
            with contextlib.suppress(OSError):
                status = JobDirectory(path).events.lstat()
            directories[job_id] = path, status.st_mtime
        else:
            elsewhere.append(path.name)
    logs: dict[str, tuple[Path, float]] = {}
    for path, status in _own_entries(home / "logs", stat.S_ISREG):
        prefix, dash, text = path.name.removesuffix(".out").partition("-")
        job_id = batch.job_id_of(text) if dash and prefix == batch.name and path.suffix == ".out" else None
        # The name of a log does not contain the cluster's.
        is_elsewhere = any(
            key.startswith(f"{batch.name}-") and key.endswith(f"-{job_id}") for key in elsewhere
        )
        if job_id and not is_elsewhere and batch.job_id_of_key(batch.job_key(job_id)):
            logs[job_id] = path, status.st_mtime
    ended_early: dict[str, tuple[Path, float]] = {}
    for path, status in _own_entries(home / ENDED, stat.S_ISREG):
        if job_id := batch.job_id_of_key(path.name):
            ended_early[job_id] = path, status.st_mtime
    found = []
    for job_id in directories.keys() | logs.keys() | ended_early.keys():
        files = [each.get(job_id) for each in (directories, logs, ended_early)]
        changed_at = next(changed_at for _, changed_at in filter(None, files))
        directory, log, record = (each and each[0] for each in files)
        found.append(Leftover(Job(job_id, batch), directory, log, record, changed_at))
    return sorted(found, key=lambda each: each.changed_at, reverse=True)


def ended(left: Sequence[Leftover], batch: BatchSystem, older_than_s: float = 0.0) -> Iterator[Leftover]:
    """Yield those whose jobs have certainly ended, more than `older_than_s` seconds ago.

    Raises
    ------
    BatchError
        The batch system does not answer.
    """
    old = [each for each in left if not older_than_s or time.time() - each.changed_at > older_than_s]
    for start in range(0, len(old), JOBS_PER_QUERY):
        part = old[start : start + JOBS_PER_QUERY]
        states = batch.states([each.job.job_id for each in part])
        yield from (each for each in part if is_over(each, states[each.job.job_id]))


def is_over(left: Leftover, state: JobState) -> bool:
    """Whether a job has certainly ended.

    Parameters
    ----------
    left : Leftover
        The job's files.
    state : JobState
        What the batch system says now.
    """
    if state.live:
        return False
    if left.job.end_event() if left.directory else left.record:
        return True
    # `unknown`: the batch system may have forgotten the job, or never have known it, as it is another cluster's.
    quiet_s = QUIET_S if state.phase == "ended" or state.reason else FORGOTTEN_S
    return time.time() - _last_change(left) > quiet_s


def remove(left: Leftover, *, dry_run: bool = False) -> Iterator[Removal]:
    """Remove the files of an ended job; yield what was removed, or could not be."""
    owner = f"job {left.job.job_id}, ended {show_duration(max(0.0, time.time() - left.changed_at))} ago"
    for path in filter(None, (left.log, left.record, left.directory)):
        size_bytes, problem = disk_bytes(path), ""
        if not dry_run:
            try:
                # rmtree removes links, and does not follow them.
                if path == left.directory:
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except FileNotFoundError:  # another process removes it, too
                continue
            except OSError as error:
                problem = error.strerror or str(error)
        yield Removal(path, size_bytes, owner, problem)


def disk_bytes(path: Path) -> int:
    """Return the size of a file, or of all files below a folder, in bytes."""
    total = 0
    for file in [path, *path.rglob("*")]:
        with contextlib.suppress(OSError):
            status = file.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _own_entries(folder: Path, is_wanted: Callable[[int], bool]) -> list[tuple[Path, os.stat_result]]:
    """Return this user's files, or folders, in a folder: no links, and nothing of another user's."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if is_wanted(status.st_mode) and status.st_uid == os.geteuid():
                    found.append((Path(entry.path), status))
    return found


def _last_change(left: Leftover) -> float:
    """Return when any file of a job was last written, in seconds since the epoch."""
    times = [left.changed_at]
    files = [left.log] if left.log else []
    with contextlib.suppress(FileNotFoundError):
        files += list(left.directory.iterdir()) if left.directory else []
    for file in files:
        # A running boot replaces its files: one that has just gone must not hide how new the others are.
        with contextlib.suppress(FileNotFoundError):
            times.append(file.lstat().st_mtime)
    return max(times)
