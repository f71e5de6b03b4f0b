"""This machine as a batch system of one node: a job is a process in the background.

There are neither commands nor a server, so `Local` implements `BatchSystem` itself, from the host's processes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.places import default_home
from envpack.common.trust import make_private_folder
from mpiboot.batch.job_state import JobState
from mpiboot.batch.local import FACTS
from mpiboot.batch.submission import BatchSystem
from mpiboot.common.processes import host_memory_bytes, process_start
from mpiboot.common.units import show_size
from mpiboot.errors import BatchError, UsageError

if TYPE_CHECKING:
    from mpiboot.config import Config

PREFIX = "local-"
NAME_FLAG = "--job-name="


class Local:
    """The jobs of this host. A job id is `<host>-<pid>-<start>`, which no later process can have."""

    facts = FACTS
    name = FACTS.name
    absent = ""
    passed_options: tuple[str, ...] = ("batch_system",)

    def submit_command(
        self,
        config: Config,
        script: Path,
        arguments: Sequence[str],
        *,
        environ: Mapping[str, str],
        variables: Sequence[str] = (),
        output_folder: Path | None = None,
    ) -> list[str]:
        elsewhere = config.partition or config.account
        if elsewhere and config.batch_system == "auto":
            raise UsageError(
                f"--{'partition' if config.partition else 'account'} {elsewhere}: this machine has no batch system "
                "but its own",
                "Type this on a login node, or run it here with --batch-system local",
            )
        if config.nodes != 1:
            raise UsageError(
                f"--nodes {config.nodes}: the local batch system has one node, this machine",
                "Leave --nodes out",
            )
        if config.mem and config.mem > host_memory_bytes():
            raise UsageError(
                f"--mem {show_size(config.mem)}: this machine has {show_size(host_memory_bytes())}",
                "Ask for less, or leave --mem out",
            )
        return ["bash", str(script), *arguments]

    def submit(self, command: Sequence[str], environ: Mapping[str, str]) -> str:
        logs = default_home(environ) / "logs"
        make_private_folder(logs)
        output = logs / f"{PREFIX}{os.getpid()}-{time.time_ns()}.out"
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
        output.rename(output_file(default_home(environ), job_id))
        process.returncode = (
            0  # the job outlives this process; without this, Python would warn of a running child
        )
        return job_id

    def check(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        pass

    def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        return {job_id: state_of(job_id) for job_id in job_ids}

    def ended(self, since: float) -> list[JobState]:
        return []

    def jobs(self, known: Collection[str] = ()) -> list[JobState]:
        directories = sorted(
            (default_home(os.environ) / "jobs").glob(f"{PREFIX}{socket.gethostname()}-*"),
            key=lambda path: path.stat().st_mtime,
        )
        states = (state_of(path.name.removeprefix(PREFIX)) for path in directories)
        return [state for state in states if state.live]

    def stop(self, job_id: str, *, by_force: bool = False) -> None:
        if state_of(job_id).live:
            os.kill(parse_job_id(job_id)[1], signal.SIGKILL if by_force else signal.SIGTERM)

    def ended_word(self, exit_status: int) -> str:
        return {0: "COMPLETED", 124: "TIMEOUT"}.get(exit_status, "FAILED")

    def job_key(self, job_id: str) -> str:
        return PREFIX + job_id

    def job_id_of_key(self, key: str) -> str | None:
        # Compare the whole host name: `login` is a prefix of `login-2`, whose processes are not visible here.
        job_id = self.job_id_of(key) if key.startswith(PREFIX) else None
        return job_id if job_id and parse_job_id(job_id)[0] == socket.gethostname() else None

    def job_id_of(self, text: str) -> str | None:
        job_id = text.removeprefix(PREFIX)
        try:
            parse_job_id(job_id)
        except BatchError:
            return None
        return job_id

    def restarts(self, job_id: str) -> int:
        return 0

    def output(self, job_id: str) -> Path | None:
        return output_file(default_home(os.environ), job_id)

    def describe(self) -> str:
        return f"{self.name}: jobs run on this machine"

    def site(self) -> dict[str, str]:
        return {}


def batch_system() -> BatchSystem:
    """Return the local batch system, for the registry."""
    return Local()


def output_file(home: Path, job_id: str) -> Path:
    """Return the file with a job's output."""
    return home / "logs" / f"{PREFIX}{job_id}.out"


def state_of(job_id: str) -> JobState:
    """Return the state of a job of this host."""
    host, pid, start = parse_job_id(job_id)
    if host != socket.gethostname():
        return JobState(job_id, "", "unknown", "unknown", f"the job ran on {host}. Type this there")
    if process_start(pid) == start:
        return JobState(job_id, name_of(pid), "running", "RUNNING", nodes=host)
    return JobState(job_id, "", "unknown", "unknown", "the process ended without recording a reason")


def name_of(pid: int) -> str:
    """Return the name that a job's user gave it, from the arguments of its boot."""
    try:
        words = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except OSError:  # it ends
        words = []
    options = words[: words.index("--")] if "--" in words else words
    names = [word.removeprefix(NAME_FLAG) for word in options if word.startswith(NAME_FLAG)]
    return names[0] if names else "mpiboot"


def parse_job_id(job_id: str) -> tuple[str, int, str]:
    """Return host, process id and start time (in the kernel's clock ticks) of a job id.

    Raises
    ------
    BatchError
        `job_id` is no job id of the local batch system.
    """
    rest, _, start = job_id.rpartition("-")
    host, _, pid = rest.rpartition("-")
    if not host or not pid.isdigit():
        raise BatchError(f"{job_id!r} is no job of the local batch system", "See the live jobs: mpiboot list")
    return host, int(pid), start
