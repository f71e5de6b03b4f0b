"""`CommandBatchSystem`: runs the commands of a `Submission`. The client uses it through the registry."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpiboot.batch.attempt import Attempt
from mpiboot.batch.job_state import JobState
from mpiboot.batch.runner import TIMEOUT_S, run
from mpiboot.batch.submission import Submission
from mpiboot.errors import BatchAwayError, BatchError, UsageError

if TYPE_CHECKING:
    from mpiboot.config import Config

# A batch system may give a new job a general reason, and the one that helps when it looks at the job again.
REASON_SETTLES_S = 1.0


class CommandBatchSystem:
    """A batch system that is used through commands; see `BatchSystem` for the methods."""

    def __init__(self, submission: Submission) -> None:
        self.submission = submission
        self.facts = submission.facts
        self.passed_options = submission.passed_options
        self.ended_word = submission.ended_word
        self.job_id_of = submission.job_id_of

    @property
    def name(self) -> str:
        return self.facts.name

    def _run(
        self,
        command: Sequence[str],
        environ: Mapping[str, str] | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> str:
        return run(
            command,
            timeout_s=timeout_s,
            environ=self.submission.query_environment(os.environ) if environ is None else environ,
            is_away=self.submission.is_away,
            remedy=f"See whether {self.facts.title} answers: {shlex.join(self.submission.ping_command())}",
        )

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
        for where, cluster in self.submission.clusters(config, script, environ).items():
            if cluster != self._cluster:
                raise UsageError(
                    f"{where}: mpiboot submits to this host's own cluster, {self._cluster}, and asks no other about jobs",
                    "Leave it out, and type this on a login node of that cluster",
                )
        return self.submission.submit_command(
            config, script, arguments, environ=environ, variables=variables, output_folder=output_folder
        )

    def submit(self, command: Sequence[str], environ: Mapping[str, str]) -> str:
        try:
            return self._submit(command, environ)
        except BatchAwayError:
            raise
        except BatchError as error:
            relaxed = self.submission.relaxed(command)
            if relaxed is None:
                raise self._refusal(error) from error
        try:
            return self._submit(relaxed, environ)
        except BatchError as error:
            raise self._refusal(error) from error

    def _submit(self, command: Sequence[str], environ: Mapping[str, str]) -> str:
        """Submit a job that can start, and return its id."""
        job_id = Attempt(self.submission, self._run, command, environ).submit()
        try:
            state = self.states([job_id])[job_id]
            if state.cannot_start:  # the first reason may be general, or pass
                time.sleep(REASON_SETTLES_S)
                state = self.states([job_id])[job_id]
        except BatchError:  # the job is submitted, whatever it will do
            return job_id
        if not state.cannot_start:
            return job_id
        what = f"{self.facts.title} would never start this job: {state.reason}"
        try:
            self._run(self.submission.cancel_command(job_id))
        except BatchError as error:
            # As if it were away: nothing else is submitted while this job waits.
            raise BatchAwayError(
                f"{what}. It waits as job {job_id}, and could not be cancelled: {error.problem}",
                f"End it: mpiboot stop {job_id}",
            ) from error
        raise BatchError(f"{what}. Job {job_id} is cancelled", "")

    def check(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        try:
            self._check(command, environ)
        except BatchError as error:
            relaxed = self.submission.relaxed(command)
            if relaxed is None:
                raise self._refusal(error) from error
            try:
                self._check(relaxed, environ)
            except BatchError as second:
                raise self._refusal(second) from second

    def _check(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        check_command = self.submission.check_command(command)
        if check_command is None:
            return
        try:
            self._run(check_command, environ)
        except BatchError as error:
            if self.submission.is_invalid(error.problem):
                raise

    def _refusal(self, error: BatchError) -> BatchError:
        """Return the error of a submit command with a remedy, and with the limits if the request exceeds one."""
        if isinstance(error, BatchAwayError):
            return error
        limits = []
        if command := self.submission.limits_command(error.problem):
            with contextlib.suppress(BatchError):
                limits = self.submission.parse_limits(self._run(command))
        return BatchError(
            "\n".join([error.problem, *limits]),
            "Change the options that it names; see: mpiboot submit --help",
        )

    def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        known = self._known_states(job_ids)
        forgotten = [job_id for job_id in job_ids if job_id not in known]
        if forgotten:
            known |= self._past_states(forgotten)
        return {job_id: known.get(job_id) or unknown(job_id) for job_id in job_ids}

    def _known_states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        try:
            output = self._run(self.submission.states_command(job_ids))
        except BatchError as error:
            if self.submission.is_unknown_job(error.problem):
                return {}
            raise
        return {state.job_id: state for state in self.submission.parse_states(output)}

    def _past_states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        command = self.submission.history_command(job_ids)
        if command is None:
            return {}
        try:
            output = self._run(command)
        except BatchError:  # many sites keep no history
            return {}
        return {state.job_id: state for state in self.submission.parse_states(output)}

    def jobs(self, known: Collection[str] = ()) -> list[JobState]:
        return self.submission.parse_jobs(self._run(self.submission.jobs_command()), known)

    def ended(self, since: float) -> list[JobState]:
        command = self.submission.ended_command(since)
        try:
            states = self.submission.parse_states(self._run(command)) if command else []
        except BatchError:  # many sites keep no history
            return []
        return [state for state in states if state.phase == "ended"]

    def restarts(self, job_id: str) -> int:
        command = self.submission.restarts_command(job_id)
        return self.submission.parse_restarts(self._run(command)) if command else 0

    def output(self, job_id: str) -> Path | None:
        command = self.submission.output_command(job_id)
        if command is None:
            return None
        try:
            return self.submission.parse_output(self._run(command))
        except BatchError:
            return None

    def stop(self, job_id: str, *, by_force: bool = False) -> None:
        signal = None if by_force else self.submission.signal_command(self.states([job_id])[job_id])
        if signal:
            try:
                self._run(signal)
                return
            except BatchError:  # the job script has not started yet, or has just ended
                pass
        self._run(self.submission.cancel_command(job_id))

    @functools.cached_property
    def _cluster(self) -> str:
        command = self.submission.cluster_command()
        return self.submission.parse_cluster(self._run(command) if command else "")

    @property
    def _key_prefix(self) -> str:
        return f"{self.name}-{self._cluster}-"

    @functools.cached_property
    def absent(self) -> str:
        try:
            self._cluster  # noqa: B018 - any query shows it
        except BatchError as error:
            if self.submission.is_absent(error.problem):
                return error.problem.splitlines()[-1]
        return ""

    def job_key(self, job_id: str) -> str:
        return self._key_prefix + job_id

    def job_id_of_key(self, key: str) -> str | None:
        if not key.startswith(f"{self.name}-") or not key.startswith(self._key_prefix):
            return None
        return self.job_id_of(key.removeprefix(self._key_prefix))

    def describe(self) -> str:
        command = self.submission.version_command()
        version = self._run(command).strip() if command else self.facts.title
        self._run(self.submission.ping_command())
        return version

    def site(self) -> dict[str, str]:
        facts = {}
        for name, command in self.submission.site_commands().items():
            with contextlib.suppress(BatchError):
                facts[name] = self.submission.describe_site(name, self._run(command))
        return facts


def unknown(job_id: str) -> JobState:
    """Return the state of a job that the batch system does not know."""
    return JobState(job_id, "", "unknown", "unknown")
