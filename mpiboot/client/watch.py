"""Waits for one job: until it runs, until its endpoint is published and verified, until its workers are connected."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from distributed import Client, Security

from mpiboot.batch.job_state import JobState
from mpiboot.client import progress as display
from mpiboot.client.job_states import job_state_cache
from mpiboot.client.phase_words import connect_command, waiting
from mpiboot.client.polling import SILENCE_S, poll_interval_s
from mpiboot.client.progress import Progress
from mpiboot.client.published import PublishedEndpoint
from mpiboot.client.settings import seconds_of
from mpiboot.client.verify import ATTEMPT_S, SETTLE_S
from mpiboot.common.logs import NO_LOG
from mpiboot.common.units import show_duration
from mpiboot.distributed_internals import scheduler_identity
from mpiboot.errors import BatchError, DeadlineError, JobEndedError, RendezvousError
from mpiboot.protocol.endpoint import Endpoint

if TYPE_CHECKING:
    from mpiboot.client.job import Job

logger = logging.getLogger(__name__)

# How often the client reads two small files of the job directory while the job runs.
FILE_POLL_S = 0.25
# All workers were connected when the endpoint was published. Workers that a nanny replaces are back after this time.
REPLACED_S = 15.0


def connect_job(
    job: Job,
    *,
    n_workers: int | None = None,
    timeout: str | float = "10 min",
    queue_timeout: str | float | None = None,
    insecure: bool = False,
    progress: Progress | None = None,
) -> Client:
    """Wait for a job's cluster and connect to it; see `mpiboot.connect`."""
    timeout_s = seconds_of("timeout", timeout)
    queue_timeout_s = None if queue_timeout is None else seconds_of("queue_timeout", queue_timeout)
    with display.choose_display(progress) as tell:
        try:
            while True:
                endpoint, security = wait_for_endpoint(
                    job, timeout_s=timeout_s, queue_timeout_s=queue_timeout_s, insecure=insecure, tell=tell
                )
                client = Client(endpoint.address, security=security, timeout=3 * ATTEMPT_S)
                with closed_on_error(client):
                    watch = Watch(job, tell, insecure, timeout_s)
                    if watch.wait_for_workers(client, endpoint, n_workers):
                        return client
                client.close()  # the job was requeued: wait for its next run
        except KeyboardInterrupt:
            raise KeyboardInterrupt(job.how_to_come_back(insecure)) from None


@contextlib.contextmanager
def closed_on_error(client: Client) -> Iterator[None]:
    """Close the client if the block raises."""
    try:
        yield
    except BaseException:
        client.close()
        raise


def wait_for_endpoint(
    job: Job, *, timeout_s: float, queue_timeout_s: float | None, insecure: bool, tell: Progress
) -> tuple[Endpoint, Security | None]:
    """Wait until the job's scheduler answers at the address that the job has published.

    Returns
    -------
    tuple[Endpoint, Security or None]
        The published endpoint, verified, and the Client's TLS settings.

    Raises
    ------
    JobEndedError, DeadlineError, RendezvousError
        As raised by `mpiboot.connect`.
    """
    watch = Watch(job, tell, insecure, timeout_s)
    with job_state_cache(job.batch).watching(job.job_id):
        return watch.wait_for_endpoint(queue_timeout_s)


class Watch:
    """A wait for one job.

    Parameters
    ----------
    job : Job
        The job.
    tell : callable
        Called with a line of progress after each change.
    insecure : bool
        Whether a cluster without TLS is accepted.
    timeout_s : float, seconds
        How long to wait for the workers, from the job's start.
    """

    def __init__(self, job: Job, tell: Progress, insecure: bool, timeout_s: float) -> None:
        self.job = job
        self.tell = tell
        self.timeout_s = timeout_s
        self.published = PublishedEndpoint(job, insecure)
        self.began = self.answered = time.monotonic()
        self.next_question = 0.0
        self.state: JobState | None = None

    def ask(self) -> JobState:
        """Return the job's state, from a query that is no older than `poll_interval_s` allows.

        Raises
        ------
        JobEndedError
            The job has ended.
        BatchError
            The batch system has not answered for `SILENCE_S` seconds.
        """
        now = time.monotonic()
        if self.state is None or now >= self.next_question:
            interval_s = poll_interval_s(now - self.began)
            try:
                # Only the first query waits for an answer: before it, there is no state to show.
                patience_s = SILENCE_S if self.state is None else 0.0
                self.state = self.job.ask(
                    max_age_s=min(interval_s, now - self.answered), patience_s=patience_s
                )
                self.answered = now
            except BatchError as error:
                if self.state is None or now - self.answered > SILENCE_S:
                    raise
                self.tell(f"job {self.job.job_id}: {error.problem}; asking again")
            self.next_question = now + interval_s
        if not self.state.live:
            job_id, log, remedy = self.job.job_id, self.job.log_tail(), ""
            if log == NO_LOG:
                log, remedy = self.job.why_no_log(self.state)
            raise JobEndedError(
                f"job {job_id} has ended: {self.state.show()}\n{log}",
                remedy or f"Read all of it: mpiboot logs {job_id}",
            )
        return self.state

    def ask_now(self) -> JobState:
        """Return the job's state from a new query, if the last answer seems out of date."""
        self.next_question = 0.0
        return self.ask()

    def wait_for_start(self, queue_timeout_s: float | None) -> None:
        """Wait until the job runs, for at most `queue_timeout_s` seconds from the first query.

        Raises
        ------
        JobEndedError
            The job has ended or, if there is no `queue_timeout_s`, cannot start.
        DeadlineError
            The job is still pending after `queue_timeout_s`.
        """
        n_cannot_start = 0
        while (state := self.ask()).pending:
            waited_s = time.monotonic() - self.began
            why = state.reason or "no reason given"
            job_id = self.job.job_id
            self.tell(f"job {job_id} is {waiting(state)}")
            n_cannot_start = n_cannot_start + 1 if state.cannot_start else 0
            if queue_timeout_s is None and n_cannot_start > 1:  # the first answer about a job can be wrong
                raise self.job.cannot_start(state)
            if queue_timeout_s is not None and waited_s >= queue_timeout_s:
                raise DeadlineError(
                    f"job {job_id} is still {state.state} ({why}) after {show_duration(waited_s)}",
                    _go_on_waiting(job_id, self.published.insecure),
                )
            left_s = float("inf") if queue_timeout_s is None else queue_timeout_s - waited_s
            time.sleep(max(0.0, min(self.next_question - time.monotonic(), left_s)))

    def deadline(self) -> float:
        """Return the time at which `timeout_s` has passed since the job's start, but leave time for one attempt."""
        assert self.state
        start = self.state.start or time.time()
        left_s = start + self.timeout_s - time.time()
        return time.monotonic() + min(max(left_s, min(SETTLE_S, self.timeout_s)), self.timeout_s)

    def check(self, deadline: float, progress: str) -> None:
        """Raise DeadlineError if the deadline has passed; its message contains the progress."""
        if time.monotonic() > deadline:
            job_id = self.job.job_id
            raise DeadlineError(
                f"job {job_id} is not ready {show_duration(self.timeout_s)} after its start: {progress}\n"
                f"{self.job.log_tail()}",
                _go_on_waiting(job_id, self.published.insecure),
            )

    def wait_for_endpoint(self, queue_timeout_s: float | None) -> tuple[Endpoint, Security | None]:
        """Wait for the endpoint of a job that may still be pending; see the function `wait_for_endpoint`."""
        self.wait_for_start(queue_timeout_s)
        deadline = self.deadline()
        failing_since: float | None = None
        while True:
            if self.ask().restarting:  # requeued: the endpoint that it published is void
                self.wait_for_start(queue_timeout_s)
                deadline, failing_since = self.deadline(), None
            progress, verb = self.job.progress(self.state.start if self.state else None), " is"
            try:
                endpoint = self.published.read()
                if endpoint is not None:
                    return endpoint, self.published.verify(endpoint)
                failing_since = None
            except RendezvousError as error:
                progress, verb = error.problem, ":"
                self.ask_now()  # the job may have ended or been requeued meanwhile
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > SETTLE_S:
                    raise RendezvousError(
                        f"job {self.job.job_id} is {self.ask().state}, but {error.problem}\n{self.job.log_tail()}",
                        error.remedy,
                    ) from error
            self.tell(f"job {self.job.job_id}{verb} {progress}")
            self.check(deadline, progress)
            time.sleep(FILE_POLL_S if time.monotonic() - self.began < 60 else 4 * FILE_POLL_S)

    def wait_for_workers(self, client: Client, endpoint: Endpoint, n_workers: int | None) -> bool:
        """Wait until the cluster has `n_workers`; None: all workers, or the remaining ones if lost ones do not return.

        Returns
        -------
        bool
            False if the job was requeued meanwhile, so that this cluster no longer exists.
        """
        self.ask()
        deadline = self.deadline()
        give_up_lost_at = time.monotonic() + REPLACED_S
        wanted = endpoint.n_workers if n_workers is None else n_workers
        while (n_present := count_workers(client)) is None or n_present < wanted:
            self.tell(f"job {self.job.job_id}: {n_present or 0} of {wanted} workers")
            if n_present is None:
                self.ask_now()
            if self.ask().restarting:
                return False
            if n_present and n_workers is None and time.monotonic() > give_up_lost_at:
                lost = f"job {self.job.job_id}: {n_present} of {wanted} workers; the others are lost"
                self.tell(lost)
                # A progress display may be off, and its last line goes.
                logger.warning("%s. See where and why: mpiboot status %s", lost, self.job.job_id)
                return True
            self.check(deadline, f"{n_present or 0} of {wanted} workers")
            time.sleep(FILE_POLL_S)
        self.tell(f"job {self.job.job_id} is ready: {n_present} workers")
        return True


def _go_on_waiting(job_id: str, insecure: bool) -> str:
    """Return the remedy for a job that is not ready in time."""
    return f"Go on waiting: {connect_command(job_id, insecure)}; give it up: mpiboot stop {job_id}"


def count_workers(client: Client) -> int | None:
    """Return the scheduler's number of workers; None if it does not answer."""
    try:
        return int(scheduler_identity(client, ATTEMPT_S)["n_workers"])
    except (
        OSError,
        TimeoutError,
        asyncio.TimeoutError,
        RuntimeError,
    ):  # two kinds of timeout before Python 3.11
        return None
