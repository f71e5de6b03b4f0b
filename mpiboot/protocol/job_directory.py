"""The job directory, where a job and its clients meet: `$MPIBOOT_HOME/jobs/<job key>/`, 0700, shared.

Boot alone writes; what others read is JSON, bounded, and trusted only if it is the user's own (`trust`).
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mpiboot.common.trust import check_trusted, open_trusted, remove_files
from mpiboot.errors import RendezvousError

logger = logging.getLogger(__name__)

ENDPOINT_VERSION = 2
MAX_ENDPOINT_BYTES = 1024**2
MAX_EVENTS_BYTES = 64 * 1024**2
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Endpoint(NamedTuple):
    """What to connect to, published once the workers are there.

    `nonce` and `restart_count` tell one run of a job from the next; `scheduler_id` is what the scheduler itself
    must answer; `n_threads` and `memory_bytes` are those of all workers together, whose nodes may differ; `end_time` is
    seconds since the epoch or None.
    """

    job_id: str
    job_key: str
    nonce: str
    restart_count: int
    scheduler_id: str
    address: str
    dashboard: str
    n_workers: int
    n_threads: int
    memory_bytes: int
    nodes: list[str]
    interface: str
    prefix: str
    source_prefix: str
    end_time: float | None
    published: float
    version: int = ENDPOINT_VERSION


class JobDirectory:
    """Paths and files of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = path.name
        self.endpoint = path / "endpoint.json"
        self.scheduler_file = path / "scheduler.json"
        self.job = path / "job.json"
        self.events = path / "events.jsonl"
        self.boot_log = path / "boot.log"
        self.ranks_log = path / "ranks.log"
        self.rank_environment = path / "rank-environment.json"
        self.host_file = path / "hosts"
        self.dashboard_page = path / "dashboard.html"
        self.leads = (
            self.endpoint,
            self.scheduler_file,
            self.rank_environment,
            self.host_file,
            self.dashboard_page,
        )

    @classmethod
    def create(cls, home: Path, key: str) -> "JobDirectory":
        """Make the job's directory, or take over that of the same job before its requeue, emptied of its endpoint."""
        path = home / "jobs" / key
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise RendezvousError(
                f"the job directory {path} cannot be made: {error.strerror}. Set MPIBOOT_HOME to a folder on the "
                "shared file system that you can write"
            ) from error
        check_trusted(path, "directory")
        directory = cls(path)
        for stale in (directory.endpoint, directory.scheduler_file, directory.rank_environment):
            stale.unlink(missing_ok=True)
        for shared in (directory.ranks_log, directory.host_file):
            shared.touch(mode=0o600)  # those who write it later leave the mode as it is
        return directory

    def is_clear(self) -> bool:
        return not any(path.exists() for path in (*self.leads, self.path / "tls"))

    def quiet_s(self) -> float:
        """Seconds since the job last wrote an event, or since its directory was made."""
        latest = self.events if self.events.exists() else self.path
        return time.time() - latest.stat().st_mtime

    def clear(self) -> None:
        """Remove what opens anything, and what leads to it. Boot and the agents of several nodes may all try."""
        for name in self.leads:
            name.unlink(missing_ok=True)
        remove_files(self.path / "tls")

    def publish(self, endpoint: Endpoint) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.scheduler_file.chmod(0o600)  # Dask's own, written with the user's umask
        write_atomic(self.endpoint, endpoint._asdict())

    def read_endpoint(self) -> Endpoint | None:
        """The published endpoint; None when there is none yet.

        Raises
        ------
        RendezvousError, SecurityError
            It is there and not to be trusted, or not what its schema says.
        """
        try:
            check_trusted(self.path, "directory")
            data = open_trusted(self.endpoint, MAX_ENDPOINT_BYTES)
        except FileNotFoundError:
            return None
        return parse_endpoint(data, self.endpoint)

    def read_events(self) -> list[dict[str, Any]]:
        """The job's events so far; a half-written last line waits for the next read."""
        try:
            check_trusted(self.path, "directory")
            data = open_trusted(self.events, MAX_EVENTS_BYTES)
        except FileNotFoundError:
            return []
        return list(parse_events(data))


def parse_endpoint(data: bytes, path: Path) -> Endpoint:
    """An Endpoint of JSON bytes, each field of the type that the schema says."""
    try:
        found = json.loads(data)
        if found["version"] != ENDPOINT_VERSION:
            raise RendezvousError(
                f"{path}: version {found['version']!r}; this mpiboot reads {ENDPOINT_VERSION}. "
                "Use the same mpiboot in the job and here"
            )
        endpoint = Endpoint(**{name: found[name] for name in Endpoint._fields})
        wrong = [
            name
            for name, kinds in _KINDS.items()
            if not isinstance(getattr(endpoint, name), kinds) or isinstance(getattr(endpoint, name), bool)
        ]
        if wrong:
            raise TypeError(f"wrong type of {', '.join(wrong)}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RendezvousError(
            f"{path} is no endpoint of mpiboot's: {type(error).__name__}: {error}"
        ) from error
    return endpoint


_KINDS: dict[str, Any] = {
    "job_id": str,
    "job_key": str,
    "nonce": str,
    "restart_count": int,
    "scheduler_id": str,
    "address": str,
    "dashboard": str,
    "n_workers": int,
    "n_threads": int,
    "memory_bytes": int,
    "nodes": list,
    "interface": str,
    "prefix": str,
    "source_prefix": str,
    "end_time": (int, float, type(None)),
    "published": (int, float),
}


def parse_events(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


def write_atomic(path: Path, content: Any) -> None:
    """JSON at `path`, 0600: whole or not at all, for readers on every node."""
    temporary = path.with_name(f".{path.name}-{os.urandom(8).hex()}")
    try:
        with os.fdopen(os.open(temporary, NEW_FILE, 0o600), "w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class EventLog:
    """`events.jsonl`: a line per phase and fault. Boot alone writes it; once that is lost, the agents say so."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        self._file = os.fdopen(descriptor, "w", buffering=1)

    def close(self) -> None:
        self._file.close()

    def write(self, event: str, **details: Any) -> None:
        line = json.dumps({"time": details.pop("time", time.time()), "event": event, **details}) + "\n"
        try:
            self._file.write(line)
        except OSError as error:  # a full quota must not end a healthy cluster
            logger.warning("%s could not be written: %s", event, error)

    def phase(self, name: str, **details: Any) -> None:
        self.write("phase", phase=name, **details)


def new_nonce() -> str:
    return os.urandom(8).hex()
