"""`Job`: a job as its user sees it, with its state, its logs and `stop`."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envpack.common.places import HOME_VARIABLE
from mpiboot import config as configuration
from mpiboot.batch.job_state import JobState
from mpiboot.batch.submission import BatchSystem
from mpiboot.client.job_states import job_state_cache
from mpiboot.client.log_files import LogFollower, start_of_end
from mpiboot.client.phase_words import STARTING, connect_command, progress_of
from mpiboot.client.polling import SILENCE_S, poll_interval_s, retry_while_away
from mpiboot.client.submitted import read_ended
from mpiboot.common.logs import EMPTY, NO_LOG
from mpiboot.common.logs import tail as end_of_log
from mpiboot.common.trust import check_trusted
from mpiboot.common.units import show_duration, show_size
from mpiboot.errors import DeadlineError, JobEndedError, MpibootError, SecurityError
from mpiboot.protocol.endpoint import Endpoint
from mpiboot.protocol.events import last_event
from mpiboot.protocol.job_directory import JobDirectory

if TYPE_CHECKING:
    from distributed import Client

# How often a followed log is read, and how often the client looks for further logs of the job.
FOLLOW_POLL_S = 0.5
LOG_FILES_POLL_S = 10.0
# How much of a log's end is read to show its last lines.
TAIL_BYTES = 64 * 1024
# How much of a log is shown at most: unless lines are asked for, and if they are.
SHOWN_BYTES = 1024**2
TAIL_MAX_BYTES = 64 * 1024**2


class Job:
    """One job of a batch system. `mpiboot.submit` returns it.

    Attributes
    ----------
    job_id : str
        The batch system's id of the job.
    batch : BatchSystem
        The batch system that runs it.
    directory : JobDirectory
        The job's directory on the shared file system.
    """

    def __init__(self, job_id: str, batch: BatchSystem) -> None:
        self.job_id = job_id
        self.batch = batch
        self._home = configuration.home(os.environ)
        self.directory = JobDirectory(self._home / "jobs" / batch.job_key(job_id))
        self._submitted_log = self._home / "logs" / f"{batch.name}-{job_id}.out"

    def __repr__(self) -> str:
        return f"<mpiboot.Job {self.job_id} on {self.batch.name}>"

    def ask(self, max_age_s: float = 0.0, *, patience_s: float = SILENCE_S) -> JobState:
        """Return the job's state; the reason for its end is the one that boot recorded, if any.

        Parameters
        ----------
        max_age_s : float, seconds
            Use the last answer of the batch system again if it is no older than this.
        patience_s : float, seconds
            How long to retry if the batch system does not answer.

        Raises
        ------
        BatchError
            The batch system does not answer.
        """
        cache = job_state_cache(self.batch)
        state = retry_while_away(lambda: cache.state(self.job_id, max_age_s), patience_s)
        return state if state.live else self.explained(state)

    def explained(self, state: JobState) -> JobState:
        """Add the reason for the end of a job to its state; boot's last event contains it unless boot was killed."""
        if state.phase == "unknown" and (kept := read_ended(self._home, self.directory.key)):
            return kept
        last = self._last_event()
        if last["event"] == "closed":
            reason = str(last["reason"]).partition("\n")[0].removesuffix(":")  # details may follow
            if state.phase == "unknown":
                word = self.batch.ended_word(last["exit_status"])
                return replace(state, phase="ended", state=word, reason=reason)
            return replace(state, reason=reason)
        if state.phase != "unknown":
            killed = "boot recorded no reason: it was killed, or its node was lost" if last["event"] else ""
            return replace(state, reason="; ".join(filter(None, (state.reason, killed))))
        has_run = self.directory.path.is_dir()
        reason = "ended, reason unknown" if has_run else f"{self.batch.name} does not know this job id"
        return replace(state, reason=state.reason or reason)

    @property
    def state(self) -> str:
        """The job's state, in the batch system's own word."""
        return self.ask().state

    @property
    def reason(self) -> str:
        """Why the job waits, or how it ended; may be empty."""
        return self.ask().reason

    @property
    def endpoint(self) -> Endpoint | None:
        """The published addresses of the cluster; None until the workers are there."""
        return self.directory.read_endpoint()

    def log_files(self) -> list[Path]:
        """Return the job's logs that exist: its output, which has boot's log in it, and the log of the ranks.

        Boot's log itself is in the list only if there is no output.
        """
        output = self._output()
        own = self._own_logs()
        return [path for path in ([output, *own[1:]] if output.is_file() else own) if path.is_file()]

    def _output(self) -> Path:
        """Return the file of the job's output, whether it exists or not."""
        # The batch system may no longer know the file, or show the pattern of its name instead of the name.
        finders: tuple[Callable[[], Path | None], ...] = (
            lambda: self.batch.output(self.job_id),
            self._recorded_output,
        )
        for find in finders:
            output = find()
            if output and (output.is_file() or (output.parent.is_dir() and "%" not in output.name)):
                return output
        return self._submitted_log

    def _recorded_output(self) -> Path | None:
        """Return the file of the job's output as boot found it; None if it has recorded none."""
        with contextlib.suppress(MpibootError, FileNotFoundError):
            for event in reversed(self.directory.read_events()):
                if output := event.get("output"):
                    return Path(output)
        return None

    def why_no_log(self, state: JobState) -> tuple[str, str]:
        """Return why an ended job may have no log, and the remedy."""
        if not state.nodes:
            return NO_LOG, "Submit it again: mpiboot submit"
        output = self._output()
        perhaps = f"{NO_LOG} Perhaps the node could not write {output}"
        if output != self._submitted_log:  # a batch command's is in the folder from which it was submitted
            return perhaps, "Submit it again from a folder that this machine and all nodes can write"
        return (
            perhaps,
            "Find out: mpiboot doctor --job-test; if so, "
            f"export {HOME_VARIABLE}=FOLDER, one that this machine and all nodes can write, and submit it again",
        )

    def _own_logs(self) -> list[Path]:
        """Return boot's log and the log of the ranks; none if another user could have made the job directory."""
        try:
            check_trusted(self.directory.path, "directory")
        except (SecurityError, FileNotFoundError):
            return []
        return [self.directory.boot_log, self.directory.ranks_log]

    def logs(self, tail: int | None = None) -> str:
        """Return the end of each log of the job, below its file's name.

        Parameters
        ----------
        tail : int, optional
            How many lines of each log. None: all of a log up to 1 MiB, and the last 1 MiB of a longer one.
        """
        parts = []
        for path in self.log_files():
            start = _start(path, tail)
            with path.open("rb") as file:
                file.seek(start)
                text = file.read(TAIL_MAX_BYTES).decode(errors="replace")
            left_out = (
                f"[{show_size(start)} are left out; all of it: {path}]\n" if start and tail is None else ""
            )
            parts.append(f"==> {path} <==\n{left_out}{text}")
        return "\n".join(parts)

    def log_tail(self, lines: int = 20) -> str:
        """Return the end of the log that best explains the job's state: boot's log, else the job's output."""
        for path in (*self._own_logs()[:1], *self.log_files()):
            text = end_of_log(path, size_bytes=TAIL_BYTES, lines=lines)
            if text != EMPTY:
                return f"The end of {path}:\n" + "\n".join("  " + line for line in text.splitlines())
        return NO_LOG

    def follow(self, tail: int | None = None) -> Iterator[str]:
        """Yield the logs so far, as `logs` does, then the lines added to them, until the job has ended."""
        start = time.monotonic()
        follower = LogFollower(lambda path: _start(path, tail))
        files: list[Path] = []
        files_at = -math.inf
        live = True
        while live:
            now = time.monotonic()
            # Read the files once more after the job has ended, for its last lines.
            live = self.ask(max_age_s=poll_interval_s(now - start)).live
            if now - files_at > LOG_FILES_POLL_S or not live or not files:
                files, files_at = self.log_files(), now
            yield from follower.read(files)
            if live:
                time.sleep(FOLLOW_POLL_S)

    def progress(self, start: float | None = None) -> str:
        """Return what the job does now, in words, from its events.

        Parameters
        ----------
        start : float, seconds since the epoch, optional
            When the job started last: events of an earlier run do not count.
        """
        with contextlib.suppress(FileNotFoundError):
            return progress_of(self.directory.read_events(), start)
        return STARTING

    def cannot_start(self, state: JobState) -> JobEndedError:
        """Return the error for a pending job that will not start unless somebody changes it."""
        why = state.reason or "no reason given"
        return JobEndedError(
            f"job {self.job_id} cannot start: {state.state} ({why}), and waiting does not help",
            f"Stop it: mpiboot stop {self.job_id}; then submit another",
        )

    def how_to_come_back(self, insecure: bool = False) -> str:
        """Return the commands that a user may type after a Ctrl-C."""
        return (
            f"job {self.job_id} goes on. Come back: {connect_command(self.job_id, insecure)}; "
            f"end it: mpiboot stop {self.job_id}"
        )

    def expected_workers(self) -> int | None:
        """Return how many workers the job will have; None until boot has recorded it."""
        for event in reversed(self.directory.read_events()):
            if event["event"] == "phase" and "n_workers" in event:
                return int(event["n_workers"])
        return None

    def wait(
        self,
        timeout_s: float | None = None,
        *,
        polls: Callable[[float], float] = poll_interval_s,
        tell: Callable[[JobState], None] = lambda state: None,
    ) -> JobState:
        """Wait until the job has ended, and return its last state.

        Parameters
        ----------
        timeout_s : float, seconds, optional
            How long to wait; None: without limit.
        polls : callable
            Returns the seconds until the next query, from the seconds waited so far.
        tell : callable
            Called with each state until the job has ended.

        Raises
        ------
        DeadlineError
            The job has not ended after `timeout_s`.
        BatchError
            The batch system does not answer.
        """
        start = time.monotonic()
        patience_s = SILENCE_S if timeout_s is None else min(SILENCE_S, timeout_s)
        while (state := self.ask(patience_s=patience_s)).live:
            tell(state)
            waited_s = time.monotonic() - start
            if timeout_s is not None and waited_s > timeout_s:
                raise DeadlineError(
                    f"job {self.job_id} is still {state.state} after {show_duration(waited_s)}",
                    f"See why: mpiboot status {self.job_id}",
                )
            time.sleep(polls(waited_s))
        return state

    def exit_status(self) -> int:
        """Return the exit status that boot recorded; 1 if boot was killed before it could."""
        closed = self.end_event()
        return int(closed["exit_status"]) if closed else 1

    def end_event(self) -> dict[str, Any] | None:
        """Return the event by which boot, or an agent, recorded the job's end; None if there is none."""
        last = self._last_event()
        return last if last["event"] == "closed" else None

    def _last_event(self) -> dict[str, Any]:
        try:
            return last_event(self.directory.read_events())
        except (MpibootError, FileNotFoundError):
            return {"event": ""}

    def stop(self, timeout_s: float = 90.0) -> JobState:
        """End the job, and return its last state once its nodes are released.

        Boot is asked to end the job in order; after half of `timeout_s` the batch system ends it.

        Raises
        ------
        DeadlineError
            The job has not ended after `timeout_s`.
        BatchError
            The batch system does not answer, or refuses.
        """
        self.request_stop()
        return self.wait_for_stop(timeout_s)

    def request_stop(self) -> None:
        """Ask boot to end the job in order; return at once.

        Raises
        ------
        BatchError
            The batch system does not answer, or refuses.
        """
        if self.ask().live:
            retry_while_away(lambda: self.batch.stop(self.job_id), SILENCE_S)

    def wait_for_stop(self, timeout_s: float = 90.0) -> JobState:
        """Wait for the end of a job that was asked to end, as `stop` does."""
        try:
            return self.wait(timeout_s / 2, polls=lambda waited_s: 0.2 if waited_s < 10 else 1.0)
        except DeadlineError:  # boot does not end
            retry_while_away(lambda: self.batch.stop(self.job_id, by_force=True), SILENCE_S)
        return self.wait(timeout_s / 2, polls=lambda waited_s: 1.0)

    def client(
        self,
        *,
        n_workers: int | None = None,
        timeout: str | float = "10 min",
        queue_timeout: str | float | None = None,
        insecure: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> Client:
        """Wait for the job's cluster and connect to it; the parameters are those of `mpiboot.connect`."""
        from mpiboot.client.watch import connect_job

        return connect_job(
            self,
            n_workers=n_workers,
            timeout=timeout,
            queue_timeout=queue_timeout,
            insecure=insecure,
            progress=progress,
        )


def _start(path: Path, lines: int | None) -> int:
    """Return the offset, in bytes, from which a log is shown."""
    return start_of_end(path, size_bytes=SHOWN_BYTES if lines is None else TAIL_MAX_BYTES, lines=lines)
