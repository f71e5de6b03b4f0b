"""The two interfaces of a batch system on the client's side.

`Submission` is what a batch system's `submission.py` implements: pure functions that build commands and parse their
output. `BatchSystem` is what the client uses. `CommandBatchSystem` (system.py) runs the commands of a `Submission`,
which makes it a `BatchSystem`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mpiboot.batch.facts import Facts
from mpiboot.batch.job_state import JobState
from mpiboot.batch.runner import TIMED_OUT

if TYPE_CHECKING:
    from mpiboot.config import Config


class Submission(Protocol):
    """The commands of one batch system. No method runs anything; each returns a command or parses text.

    A subclass writes the methods that raise NotImplementedError here. The others have a default, for batch systems that
    cannot do better.

    Attributes
    ----------
    facts : Facts
        The folder's facts.
    passed_options : tuple of str
        Options that boot learns from the batch system, such as the nodes: they are left out of boot's arguments.
    """

    facts: Facts
    passed_options: tuple[str, ...] = ("batch_system",)

    # Submit.

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
        """Return the command that submits `script` with `arguments`; a user could type it.

        Parameters
        ----------
        config : Config
            The job's options: nodes, memory, walltime, and so on.
        environ : mapping
            The environment of the submitting process.
        variables : sequence of str
            Names of variables in `environ` that the job must find in its environment. Their values are secret: never
            write them into a command.
        output_folder : Path, optional
            Write the job's output to `<output_folder>/<batch system>-<job id>.out`. None: wherever the batch system
            writes it.

        Raises
        ------
        UsageError
            The options ask for something that this batch system cannot do.
        """
        raise NotImplementedError

    def clusters(self, config: Config, script: Path, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the clusters that a submit command would go to, by the option or variable that names each of them.

        Empty: the one of this host. Jobs of another cluster are refused, since their ids mean other jobs here.
        """
        return {}

    def parse_submitted(self, output: str) -> str:
        """Return the new job's id from the output of the submit command.

        Raises
        ------
        BatchError
            There is no job id in it.
        """
        raise NotImplementedError

    def identified(self, command: Sequence[str], token: str) -> list[str]:
        """Return the submit command with `token` in a place where `parse_recent` finds it, if there is one."""
        return list(command)

    def recent_command(self) -> list[str] | None:
        """Return the command that asks for this user's jobs, whose output `parse_recent` reads; None: there is none."""
        return None

    def parse_recent(
        self, output: str, command: Sequence[str], token: str, since: float
    ) -> tuple[str | None, list[str]]:
        """Return the job that a submit command has made although it failed, and the jobs that may be the one.

        Parameters
        ----------
        output : str
            Of `recent_command`.
        command, token
            As given to `identified`.
        since : float
            When the submit command was started, in seconds since the epoch.
        """
        return None, []

    def relaxed(self, command: Sequence[str]) -> list[str] | None:
        """Return a submit command without what mpiboot asks for only if the site allows it; None: it has none."""
        return None

    def check_command(self, submit_command: Sequence[str]) -> list[str] | None:
        """Return a command that fails if `submit_command` would be refused; None: there is none."""
        return None

    def is_invalid(self, text: str) -> bool:
        """Whether a refusal would be the same at any time, independent of other jobs on the cluster."""
        return True

    def limits_command(self, text: str) -> list[str] | None:
        """Return a command whose output explains the refusal `text`; None: there is none."""
        return None

    def parse_limits(self, output: str) -> list[str]:
        """Return the limits for a message, one per line."""
        return []

    # Ask.

    def states_command(self, job_ids: Sequence[str]) -> list[str]:
        """Return the command that asks for the states of these jobs."""
        raise NotImplementedError

    def jobs_command(self) -> list[str]:
        """Return the command that asks for this user's live jobs."""
        raise NotImplementedError

    def history_command(self, job_ids: Sequence[str]) -> list[str] | None:
        """Return the command that asks for ended jobs that `states_command` does not know; None: there is none."""
        return None

    def ended_command(self, since: float) -> list[str] | None:
        """Return the command that asks for this user's jobs that ended after `since`, in seconds since the epoch.

        None: the batch system keeps no history.
        """
        return None

    def parse_states(self, output: str) -> list[JobState]:
        """Return the jobs in the output of any of the four commands above."""
        raise NotImplementedError

    def parse_jobs(self, output: str, known: Collection[str] = ()) -> list[JobState]:
        """Return mpiboot's own jobs in the output of `jobs_command`, the newest last; `known` are ids of such jobs."""
        return self.parse_states(output)

    def is_unknown_job(self, text: str) -> bool:
        """Whether an error of `states_command` only says that it does not know a job."""
        return False

    def output_command(self, job_id: str) -> list[str] | None:
        """Return the command that asks where the job's output is; None: there is none."""
        return None

    def parse_output(self, output: str) -> Path | None:
        """Return the file with the job's output."""
        return None

    def restarts_command(self, job_id: str) -> list[str] | None:
        """Return the command that asks how often the job was requeued; None: jobs are never requeued."""
        return None

    def parse_restarts(self, output: str) -> int:
        """Return how often the job was requeued."""
        return 0

    def ended_word(self, exit_status: int) -> str:
        """Return the batch system's word for a job that it has forgotten and that ended with this exit status."""
        return "ended"

    # Stop.

    def signal_command(self, state: JobState) -> list[str] | None:
        """Return the command that sends SIGTERM to the job script alone, so that boot ends the job in order.

        None: the job script does not run, or the batch system cannot do it.
        """
        return None

    def cancel_command(self, job_id: str) -> list[str]:
        """Return the command that ends the job at once."""
        raise NotImplementedError

    # The batch system itself.

    def version_command(self) -> list[str] | None:
        """Return the command that prints the version, without asking a server; None: there is none."""
        return None

    def ping_command(self) -> list[str]:
        """Return a command that fails if the batch system does not answer; a user types it to see why."""
        return self.jobs_command()

    def cluster_command(self) -> list[str] | None:
        """Return the command that asks for the cluster's name; None: there is only one cluster."""
        return None

    def parse_cluster(self, output: str) -> str:
        """Return the cluster's name. In a job, `allocation.py` must find the same one."""
        return "cluster"

    def site_commands(self) -> Mapping[str, list[str]]:
        """Return commands that show facts of the site, such as its kinds of nodes, by the name of the fact."""
        return {}

    def describe_site(self, name: str, output: str) -> str:
        """Return a fact of the site, in words, from the output of its command."""
        return output.strip()

    def job_id_of(self, text: str) -> str | None:
        """Return the job id that a user means with `text`; None if this batch system has no such ids."""
        return text if text.isdigit() else None

    def is_away(self, text: str) -> bool:
        """Whether an error text means that the batch system temporarily does not answer (see `runner.run`)."""
        return text.startswith(TIMED_OUT)

    def is_absent(self, text: str) -> bool:
        """Whether an error text means that this machine has the commands, but is not configured to use them."""
        return False

    def query_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return `environ` without the variables that change what the commands above print."""
        return dict(environ)


class BatchSystem(Protocol):
    """A batch system, as the client uses it.

    All methods except `submit_command`, `job_id_of` and `ended_word` may run commands. They raise BatchError if a
    command fails, and BatchAwayError if the batch system temporarily does not answer.
    """

    facts: Facts
    passed_options: tuple[str, ...]

    @property
    def name(self) -> str:
        """The word for `--batch-system`."""

    @property
    def absent(self) -> str:
        """Why the batch system cannot be used here although its commands are; empty: it can, or it is only away."""

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
        """Return the command that submits a job; see `Submission.submit_command`."""

    def submit(self, command: Sequence[str], environ: Mapping[str, str]) -> str:
        """Run a submit command and return the new job's id.

        A job that was made although the command failed is found; one that could never start is cancelled.

        Raises
        ------
        BatchError
            There is no job. A BatchAwayError says if there may be one.
        KeyboardInterrupt
            With a text that says what became of the job.
        """

    def check(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Raise BatchError if the submit command would be refused at any time."""

    def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """Return the state of each job, with one query; `system.unknown` for jobs that the batch system does not know."""

    def jobs(self, known: Collection[str] = ()) -> list[JobState]:
        """Return this user's live jobs that mpiboot submitted, the newest last.

        Parameters
        ----------
        known : collection of str
            Ids of jobs that are mpiboot's, whether or not the batch system shows that.
        """

    def ended(self, since: float) -> list[JobState]:
        """Return all jobs of this user that ended after `since`, as far as the batch system keeps a history."""

    def restarts(self, job_id: str) -> int:
        """Return how often the job was requeued; an endpoint that an earlier run published is void."""

    def output(self, job_id: str) -> Path | None:
        """Return the file with the job's output; None if the batch system does not know it."""

    def stop(self, job_id: str, *, by_force: bool = False) -> None:
        """Ask boot to end the job in order, or end it at once; does not wait for the end."""

    def ended_word(self, exit_status: int) -> str:
        """Return the word for a job that has ended with this exit status."""

    def job_key(self, job_id: str) -> str:
        """Return the name of the job's directory."""

    def job_id_of_key(self, key: str) -> str | None:
        """Return the job id of a job directory's name; None if it belongs to another cluster, host or batch system."""

    def job_id_of(self, text: str) -> str | None:
        """Return the job id that a user means with `text`; None if this batch system has no such ids."""

    def describe(self) -> str:
        """Return a description of the batch system, after checking that it answers."""

    def site(self) -> dict[str, str]:
        """Return facts of the site for `doctor`, in words, by their names; without those that cannot be asked."""
