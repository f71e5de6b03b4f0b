"""Waits for the end of a job in batch mode, and says meanwhile what the job does."""

from __future__ import annotations

from mpiboot.batch.job_state import JobState
from mpiboot.client.job import Job
from mpiboot.client.phase_words import waiting
from mpiboot.client.progress import Progress, choose_display


def wait_for_command(job: Job, progress: Progress | None = None, timeout_s: float | None = None) -> JobState:
    """Wait until a job has ended that runs a command.

    Parameters
    ----------
    job : Job
        The job.
    progress : callable, optional
        Called with a line at each change, instead of the display in a terminal.
    timeout_s : float, seconds, optional
        How long to wait; None: without limit.

    Returns
    -------
    JobState
        The job's last state.

    Raises
    ------
    JobEndedError
        The job cannot start.
    DeadlineError
        The job has not ended after `timeout_s`.
    BatchError
        The batch system does not answer.
    """
    n_cannot_start = 0
    with choose_display(progress) as show:

        def tell(state: JobState) -> None:
            nonlocal n_cannot_start
            n_cannot_start = n_cannot_start + 1 if state.cannot_start else 0
            if n_cannot_start > 1:  # the first answer about a job can be wrong
                raise job.cannot_start(state)
            show(f"job {job.job_id} is {waiting(state) if state.pending else running(job, state)}")

        return job.wait(timeout_s, tell=tell)


def running(job: Job, state: JobState) -> str:
    """Return what a running job does, in words, and where it writes its output."""
    does = job.progress(state.start)
    output = "".join(f"; its output: {path}" for path in job.log_files()[:1])
    return f"{state.state}: {'its command runs' if does == 'ready' else does}{output}"
