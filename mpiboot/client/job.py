"""`Job`: one job, as its user sees it: its state, its logs, its end."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiboot import config as configuration
from mpiboot.batch import BatchSystem, JobState
from mpiboot.client.job_states import answers_of
from mpiboot.client.polling import SILENCE_S, patiently, poll_interval_s
from mpiboot.common.trust import check_trusted
from mpiboot.common.units import show_duration
from mpiboot.errors import (
    DeadlineError,
    MpibootError,
    SecurityError,
)
from mpiboot.protocol.endpoint import Endpoint
from mpiboot.protocol.job_directory import JobDirectory

if TYPE_CHECKING:
    from distributed import Client


class Job:
    """One job of a batch system; `job_id` is an opaque `str`."""

    def __init__(self, job_id: str, batch: BatchSystem) -> None:
        self.job_id = job_id
        self.batch = batch
        home = configuration.home(os.environ)
        self.directory = JobDirectory(home / "jobs" / batch.job_key(job_id))
        self._submitted_log = home / "logs" / f"{batch.name}-{job_id}.out"

    def __repr__(self) -> str:
        return f"<mpiboot.Job {self.job_id} on {self.batch.name}>"

    def ask(self, max_age_s: float = 0.0, *, patience_s: float = SILENCE_S) -> JobState:
        """What the batch system says now, or said at most `max_age_s` ago; of an ended job, what boot said too."""
        answers = answers_of(self.batch)
        state = patiently(lambda: answers.state(self.job_id, max_age_s), patience_s)
        return state if state.live else self._ended(state)

    def _ended(self, state: JobState) -> JobState:
        """Boot's last event says why a job ended; a job that was killed has none."""
        last = self._last_event()
        if last["event"] != "closed":
            if last["event"] and state.state != "UNKNOWN":
                silent = "mpiboot boot left no last word: it was killed, or its node was lost"
                return replace(state, reason="; ".join(filter(None, (state.reason, silent))))
            if state.state != "UNKNOWN":
                return state
            known = self.directory.path.is_dir()
            unknown = "ended, reason unknown" if known else "no job of this id is known here"
            return replace(state, reason=state.reason or unknown)
        reason = str(last["reason"]).partition("\n")[0]  # what follows is the end of a log
        word = {0: "COMPLETED", 124: "TIMEOUT"}.get(last["exit_status"], "FAILED")
        return replace(state, state=word if state.state == "UNKNOWN" else state.state, reason=reason)

    @property
    def state(self) -> str:
        """The batch system's word for the job's state, such as PENDING or RUNNING."""
        return self.ask().state

    @property
    def reason(self) -> str:
        """Why it is in that state, as the batch system has it."""
        return self.ask().reason

    @property
    def endpoint(self) -> Endpoint | None:
        """What to connect to; None until the workers are there."""
        return self.directory.read_endpoint()

    def log_files(self) -> list[Path]:
        """The job's logs that exist: its output, and the ranks'. Boot's is in the output, so it is one only without."""
        output = self.batch.output(self.job_id)
        if output is None or not output.is_file():  # forgotten, or Slurm shows the pattern and not the name
            output = self._submitted_log
        own = self._own_logs()
        return [path for path in ([output, *own[1:]] if output.is_file() else own) if path.is_file()]

    def _own_logs(self) -> list[Path]:
        """Boot's log and the ranks'; none of a job directory that others could have made."""
        try:
            check_trusted(self.directory.path, "directory")
        except (SecurityError, FileNotFoundError):
            return []
        return [self.directory.boot_log, self.directory.ranks_log]

    def logs(self) -> str:
        """All of the job's logs, each under its name."""
        return "\n".join(f"==> {path} <==\n{path.read_text(errors='replace')}" for path in self.log_files())

    def log_tail(self, lines: int = 20) -> str:
        """The end of what explains the job's state best: boot's log, else the job's output."""
        for path in (*self._own_logs()[:1], *self.log_files()):
            if path.is_file() and (text := path.read_text(errors="replace").strip()):
                return f"The end of {path}:\n" + "\n".join("  " + line for line in text.splitlines()[-lines:])
        return "It left no log."

    def follow(self) -> Iterator[str]:
        """All of the logs so far, then what is added, until the job has ended. Of each text, its file's name once."""
        start = time.monotonic()
        seen: dict[Path, int] = {}
        shown: Path | None = None
        asked_files = -math.inf
        live = True
        while live:
            now = time.monotonic()
            # What is written between the last look and the end is read once more.
            live = self.ask(max_age_s=poll_interval_s(now - start)).live
            if now - asked_files > 10 or not live or not seen:
                files, asked_files = self.log_files(), now
            for path in files:
                with path.open("rb") as file:
                    file.seek(seen.setdefault(path, 0))
                    new = file.read()
                seen[path] += len(new)
                if new:
                    name = f"==> {path} <==\n" if path != shown else ""
                    shown = path
                    yield name + new.decode(errors="replace")
            if live:
                time.sleep(0.5)

    def promised_workers(self) -> int | None:
        """How many workers the job will have; None as long as boot has not said."""
        for event in reversed(self.directory.read_events()):
            if event["event"] == "phase" and "n_workers" in event:
                return int(event["n_workers"])
        return None

    def wait(
        self, timeout_s: float | None = None, *, polls: Callable[[float], float] | None = None
    ) -> JobState:
        """Wait until the job has ended.

        Raises
        ------
        DeadlineError
            It has not after `timeout_s`.
        """
        start = time.monotonic()
        patience_s = SILENCE_S if timeout_s is None else min(SILENCE_S, timeout_s)
        while (state := self.ask(patience_s=patience_s)).live:
            waited = time.monotonic() - start
            if timeout_s is not None and waited > timeout_s:
                raise DeadlineError(f"job {self.job_id} is still {state.state} after {show_duration(waited)}")
            time.sleep((polls or poll_interval_s)(waited))
        return state

    def exit_status(self) -> int:
        """What boot ended with; 1 where it was killed before it could say."""
        last = self._last_event()
        return int(last["exit_status"]) if last["event"] == "closed" else 1

    def _last_event(self) -> dict[str, Any]:
        try:
            return self.directory.read_events()[-1]
        except (MpibootError, FileNotFoundError, IndexError):
            return {"event": ""}

    def stop(self, timeout_s: float = 90.0) -> JobState:
        """End the job, and return when its nodes are released."""
        if self.ask().live:
            patiently(lambda: self.batch.stop(self.job_id), SILENCE_S)
        try:
            return self.wait(timeout_s / 2, polls=lambda waited: 0.2 if waited < 10 else 1.0)
        except DeadlineError:  # boot itself is stuck
            patiently(lambda: self.batch.stop(self.job_id, by_force=True), SILENCE_S)
        return self.wait(timeout_s / 2, polls=lambda waited: 1.0)

    def client(self, **arguments: Any) -> Client:
        """`mpiboot.connect` to this job."""
        from mpiboot.client.connect import connect

        return connect(self, **arguments)
