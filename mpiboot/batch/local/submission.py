"""This machine as a batch system of one node: a job is a process in the background."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpiboot.batch import JobState
from mpiboot.common.processes import process_start
from mpiboot.config import Config, home
from mpiboot.errors import BatchError


class Local:
    """Jobs of this host. A job id is `<host>-<pid>-<start>`, which no later process can have."""

    name = "local"

    def submit_command(self, config: Config, script: Path, arguments: Sequence[str], log: Path) -> list[str]:
        if config.nodes != 1:
            raise BatchError(f"--nodes {config.nodes}: the local batch system has one node, this machine")
        return ["bash", str(script), *arguments]

    def submit(self, command: Sequence[str], environ: Mapping[str, str]) -> str:
        logs = home(environ) / "logs"
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        output = logs / f"local-{os.getpid()}-{time.time_ns()}.out"
        with output.open("xb") as log:
            process = subprocess.Popen(
                command,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        job_id = f"{socket.gethostname()}-{process.pid}-{process_start(process.pid)}"
        output.rename(self._output(logs, job_id))
        process.returncode = 0  # it goes on without us: no warning of a child left behind
        return job_id

    def check(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        pass

    def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        return {job_id: self._state(job_id) for job_id in job_ids}

    def _state(self, job_id: str) -> JobState:
        host, pid, start = parse_job_id(job_id)
        if host != socket.gethostname():
            return JobState(job_id, "", "UNKNOWN", f"it ran on {host}; ask there")
        if start is not None and process_start(pid) == start:
            return JobState(job_id, "mpiboot", "RUNNING", nodes=host)
        return JobState(job_id, "", "UNKNOWN", "it died without a word")

    def jobs(self) -> list[JobState]:
        keys = sorted(
            (home(os.environ) / "jobs").glob(f"local-{socket.gethostname()}-*"),
            key=lambda p: p.stat().st_mtime,
        )
        states = (self._state(path.name.removeprefix("local-")) for path in keys)
        return [state for state in states if state.live]

    def stop(self, job_id: str, *, by_force: bool = False) -> None:
        if self._state(job_id).live:
            os.kill(parse_job_id(job_id)[1], signal.SIGKILL if by_force else signal.SIGTERM)

    def job_key(self, job_id: str) -> str:
        return f"local-{job_id}"

    def job_id(self, key: str) -> str | None:
        # Not by the start of the key alone: `login` is the start of `login-2`, whose processes cannot be seen here.
        job_id = key.removeprefix("local-")
        with contextlib.suppress(BatchError):
            if job_id != key and parse_job_id(job_id)[0] == socket.gethostname():
                return job_id
        return None

    def restarts(self, job_id: str) -> int:
        return 0

    def output(self, job_id: str) -> Path | None:
        return self._output(home(os.environ) / "logs", job_id)

    @staticmethod
    def _output(logs: Path, job_id: str) -> Path:
        return logs / f"local-{job_id}.out"


def parse_job_id(job_id: str) -> tuple[str, int, str | None]:
    """Host, pid and start ticks.

    Raises
    ------
    BatchError
        It is no job id of the local batch system.
    """
    host, _, rest = job_id.removeprefix("local-").rpartition("-")[0].rpartition("-")
    start = job_id.rpartition("-")[2]
    if not host or not rest.isdigit():
        raise BatchError(f"{job_id!r} is no job of the local batch system. Try: mpiboot list")
    return host, int(rest), start
