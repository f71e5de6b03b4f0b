"""`Attempt`: one run of a submit command, whose job is found even if the command fails. `system` imports this module."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from mpiboot.batch.submission import Submission
from mpiboot.errors import BatchAwayError, BatchError

logger = logging.getLogger(__name__)

# A busy batch system keeps a submit command waiting, and the command asks again by itself.
SUBMIT_TIMEOUT_S = 120.0
# The pauses before each look for a job whose submit command got no answer.
SEARCH_PAUSES_S = (0.0, 1.0, 3.0, 6.0)


class Attempt:
    """One attempt to submit a job.

    Parameters
    ----------
    submission : Submission
        The batch system's commands.
    run : callable
        Runs a command; see `runner.run`.
    command : sequence of str
        The submit command.
    environ : mapping
        Its environment.
    """

    def __init__(
        self,
        submission: Submission,
        run: Callable[..., str],
        command: Sequence[str],
        environ: Mapping[str, str],
    ) -> None:
        self._submission, self._run, self._environ = submission, run, environ
        self._command = command
        self._token = secrets.token_hex(8)
        self._identified = submission.identified(command, self._token)
        self._since = time.time()

    def submit(self) -> str:
        """Run the command; return the new job's id.

        Raises
        ------
        BatchError
            There is no job. A BatchAwayError says if there may be one.
        KeyboardInterrupt
            With a text that says what became of the job.
        """
        try:
            output = self._run(self._identified, self._environ, timeout_s=SUBMIT_TIMEOUT_S)
            return self._submission.parse_submitted(output)
        except BatchError as error:
            job_id = self._find(error)
            logger.warning("%s; job %s was submitted all the same", error.problem, job_id)
            return job_id
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._undo()) from None

    def _find(self, error: BatchError) -> str:
        """Return the job that the command has made although it failed with `error`.

        Raises
        ------
        BatchError
            `error`, if there is no job. A BatchAwayError: there may be one; the message names those that may be it.
        """
        query = self._submission.recent_command()
        if query is None:
            raise error
        away = isinstance(error, BatchAwayError)
        answered = False
        alike: list[str] = []
        # A command that was refused has made no job; of one that got no answer, the job may still be on its way.
        for pause_s in SEARCH_PAUSES_S if away else (0.0,):
            time.sleep(pause_s)
            answered = False
            with contextlib.suppress(BatchError):
                job_id, alike = self._submission.parse_recent(
                    self._run(query), self._command, self._token, self._since
                )
                answered = True
                if job_id is not None:
                    return job_id
        has_token = list(self._identified) != list(self._command)
        if not away or (answered and (has_token or not alike)):
            raise error
        which = f": perhaps {', '.join(alike)}" if alike else ""
        raise BatchAwayError(
            f"{error.problem}\nA job may have been submitted all the same{which}",
            "See it, and end it: mpiboot list; mpiboot stop JOB",
        ) from error

    def _undo(self) -> str:
        """Cancel the job that the interrupted command has made; return what became of it, in words."""
        name = self._command[0]
        try:
            job_id = self._find(BatchAwayError(f"{name} was interrupted", ""))
            self._run(self._submission.cancel_command(job_id))
        except BatchError as error:
            return str(error)
        return f"{name} was interrupted; job {job_id}, which it had submitted, is cancelled"
