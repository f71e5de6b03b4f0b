"""The job directory, where a job and its clients meet: `$MPIBOOT_HOME/jobs/<job key>/`, mode 0700, shared by all nodes.

Boot alone writes. Client, boot and agents import this module; it imports `common.trust` and the errors. Agents, which
start from a slow shared file system, need neither endpoint nor events: those modules are imported where they are used.
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envpack.common.trust import make_private_folder
from mpiboot.common.trust import check_trusted, open_trusted, remove_files
from mpiboot.errors import RendezvousError

if TYPE_CHECKING:
    from mpiboot.protocol.endpoint import Endpoint

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class JobDirectory:
    """The files of one job.

    Parameters
    ----------
    path : Path
        The directory.

    Attributes
    ----------
    path : Path
        The directory.
    key : str
        Its name, `<batch system>-<cluster>-<job_id>`.
    endpoint, scheduler_file, job, events, boot_log, ranks_log : Path
        `endpoint.json`, Dask's `scheduler.json`, `job.json` (the job's options and nodes), `events.jsonl` and the two
        logs.
    tls : Path
        Folder of the job's secrets (`protocol.secrets`).
    rank_environment : Path
        The file that every rank reads first (`protocol.node.RankPlan`).
    host_file : Path
        The host file of the MPI launcher.
    channel : Path
        Boot's addresses, which the agents dial (`protocol.channel_messages.ChannelAddress`).
    unreached : Path
        Lines of JSON, `[node, reason]`, of agents that have ended without a connection to boot.
    heartbeat : Path
        A number that changes as long as boot lives.
    agent_program : Path
        The agents' program (`boot.agent_program`).
    dashboard_page : Path
        Page that sends the user's browser to the dashboard, with the token.
    """

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
        self.channel = path / "channel.json"
        self.unreached = path / "unreached"
        self.heartbeat = path / "heartbeat"
        self.agent_program = path / "agent.pyc"
        self.dashboard_page = path / "dashboard.html"
        self.tls = path / "tls"
        # The files that lead to the cluster; `clear` removes them with the secrets.
        self._pointers = (
            self.endpoint,
            self.scheduler_file,
            self.rank_environment,
            self.host_file,
            self.dashboard_page,
            self.channel,
            self.unreached,
            self.heartbeat,
            self.agent_program,
        )

    @classmethod
    def create(cls, home: Path, key: str) -> "JobDirectory":
        """Make the job's directory. A requeued job keeps its directory, without the old endpoint.

        Parameters
        ----------
        home : Path
            mpiboot's folder on the shared file system.
        key : str
            Name of the directory.

        Raises
        ------
        RendezvousError
            The directory could not be made.
        SecurityError
            Others could have made or changed it.
        """
        path = home / "jobs" / key
        try:
            make_private_folder(path)
        except OSError as error:
            raise RendezvousError(
                f"the job directory {path} could not be made: {error.strerror}",
                "Set MPIBOOT_HOME to a folder on the shared file system that you can write",
            ) from error
        check_trusted(path, "directory")
        directory = cls(path)
        for stale in (
            directory.endpoint,
            directory.scheduler_file,
            directory.rank_environment,
            directory.unreached,
        ):
            stale.unlink(missing_ok=True)
        for shared in (directory.ranks_log, directory.host_file, directory.heartbeat, directory.unreached):
            shared.touch(mode=0o600)  # later writers keep the mode
        return directory

    def is_clear(self) -> bool:
        """Whether `clear` has nothing left to do."""
        try:
            # One request to the shared file system, instead of one for each file: a home may have many jobs.
            present = set(os.listdir(self.path))  # noqa: PTH208 - names, no Path for each
        except OSError:
            return True
        return present.isdisjoint(path.name for path in (*self._pointers, self.tls))

    def quiet_s(self) -> float:
        """Return the seconds since the job last wrote an event, or since its directory was made."""
        latest = self.events if self.events.exists() else self.path
        return time.time() - latest.stat().st_mtime

    def clear(self) -> None:
        """Remove the secrets and the files that lead to the cluster. Boot and several agents may call this at once."""
        for path in self._pointers:
            path.unlink(missing_ok=True)
        remove_files(self.tls)

    def publish(self, endpoint: "Endpoint") -> None:
        """Write `endpoint.json`, after which clients can connect."""
        with contextlib.suppress(FileNotFoundError):
            self.scheduler_file.chmod(0o600)  # Dask's own, written with the user's umask
        write_atomic(self.endpoint, endpoint._asdict())

    def read_endpoint(self) -> "Endpoint | None":
        """Read the published endpoint; None if there is none yet.

        Raises
        ------
        RendezvousError
            The file is not an endpoint.
        SecurityError
            Others could have written the file.
        """
        from mpiboot.protocol.endpoint import MAX_ENDPOINT_BYTES, parse_endpoint

        try:
            check_trusted(self.path, "directory")
            data = open_trusted(self.endpoint, MAX_ENDPOINT_BYTES)
        except FileNotFoundError:
            return None
        return parse_endpoint(data, self.endpoint)

    def read_events(self) -> list[dict[str, Any]]:
        """Read the job's events so far; a half-written last line waits for the next read.

        Raises
        ------
        SecurityError
            Others could have written the file.
        """
        from mpiboot.protocol.events import MAX_EVENTS_BYTES, parse_events

        try:
            check_trusted(self.path, "directory")
            data = open_trusted(self.events, MAX_EVENTS_BYTES)
        except FileNotFoundError:
            return []
        return list(parse_events(data))


def write_atomic(path: Path, content: Any) -> None:
    """Write JSON to `path`, mode 0600. Readers on every node see the whole content or the previous file.

    Parameters
    ----------
    path : Path
        The file; an existing one is replaced.
    content
        Any object that `json.dumps` takes.
    """
    write_bytes_atomic(path, json.dumps(content, indent=1).encode())


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path`, as `write_atomic` does."""
    temporary = path.with_name(f".{path.name}-{os.urandom(8).hex()}")
    try:
        with os.fdopen(os.open(temporary, _NEW_FILE, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
