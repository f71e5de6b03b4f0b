"""Waits for one job: until it runs, until its endpoint is published and verified, until its workers are there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from distributed import Client, Security

from mpiboot.batch import JobState
from mpiboot.client.job_states import answers_of
from mpiboot.client.polling import SILENCE_S, poll_interval_s
from mpiboot.client.progress import Progress
from mpiboot.client.verify import Answer, ask_scheduler
from mpiboot.common.trust import check_trusted
from mpiboot.common.units import show_duration
from mpiboot.errors import (
    BatchError,
    DeadlineError,
    JobEndedError,
    MpibootError,
    RendezvousError,
)
from mpiboot.protocol.endpoint import Endpoint
from mpiboot.protocol.secrets import client_security_arguments

if TYPE_CHECKING:
    from mpiboot.client.job import Job


# How often the job directory is looked at while the job runs; it is a read of two small files.
FILE_POLL_S = 0.25
ATTEMPT_S = 4.0
# A published address where nobody, or somebody else, answers for this long is given up.
SETTLE_S = 8.0
# All workers were there when the endpoint was published: those that a nanny replaces are back by then.
REPLACED_S = 15.0


def how_to_come_back(job: Job) -> str:
    return f"job {job.job_id} goes on. Come back: mpiboot connect {job.job_id}; end it: mpiboot stop {job.job_id}"


@contextlib.contextmanager
def closed_on_error(client: Client) -> Iterator[None]:
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
        What was published, verified, and what a Client needs to get in.
    """
    watch = Watch(job, tell, insecure, timeout_s)
    with answers_of(job.batch).watching(job.job_id):
        return watch.wait_for_endpoint(queue_timeout_s)


class Watch:
    """One wait for one job."""

    def __init__(self, job: Job, tell: Progress, insecure: bool, timeout_s: float) -> None:
        self.job = job
        self.tell = tell
        self.insecure = insecure
        self.timeout_s = timeout_s
        self.began = self.answered = time.monotonic()
        self.next_question = 0.0
        self.state: JobState | None = None
        self.void: set[str] = set()  # nonces of endpoints from before a requeue
        self.valid: set[str] = set()

    # ---- the batch system

    def ask(self) -> JobState:
        """What the batch system says, asked as often as is gentle; an ended job is an error."""
        now = time.monotonic()
        if self.state is None or now >= self.next_question:
            interval_s = poll_interval_s(now - self.began)
            try:
                # Where there is no answer yet, there is nothing to show meanwhile either.
                patience_s = SILENCE_S if self.state is None else 0.0
                self.state = self.job.ask(
                    max_age_s=min(interval_s, now - self.answered), patience_s=patience_s
                )
                self.answered = now
            except BatchError as error:
                if self.state is None or now - self.answered > SILENCE_S:
                    raise
                self.tell(f"job {self.job.job_id}: {error}; asking again")
            self.next_question = now + interval_s
        if not self.state.live:
            raise JobEndedError(
                f"job {self.job.job_id} has ended: {self.state.show()}\n{self.job.log_tail()}"
            )
        return self.state

    def ask_at_once(self) -> JobState:
        """The same, when something shows that the last answer is out of date."""
        self.next_question = 0.0
        return self.ask()

    def wait_for_start(self, queue_timeout_s: float | None) -> None:
        """Until the job runs. `queue_timeout_s` counts from the first question."""
        seen_never = 0
        while (state := self.ask()).pending:
            waited_s = time.monotonic() - self.began
            estimate = (
                f", may start {time.strftime('%a %H:%M', time.localtime(state.start))}" if state.start else ""
            )
            why = state.reason or "no reason given"
            self.tell(f"job {self.job.job_id} is {state.state} ({why}{estimate})")
            job_id = self.job.job_id
            seen_never = seen_never + 1 if state.never else 0
            if queue_timeout_s is None and seen_never > 1:  # a first look at a job can be wrong
                raise JobEndedError(
                    f"job {job_id} cannot start: {state.state} ({why}), which no wait changes. "
                    f"See what it asks for: mpiboot status {job_id}; or give it up: mpiboot stop {job_id}"
                )
            if queue_timeout_s is not None and waited_s >= queue_timeout_s:
                raise DeadlineError(
                    f"job {job_id} is still {state.state} ({why}) after {show_duration(waited_s)}. "
                    f"Go on waiting: mpiboot connect {job_id}; give it up: mpiboot stop {job_id}"
                )
            left_s = float("inf") if queue_timeout_s is None else queue_timeout_s - waited_s
            time.sleep(max(0.0, min(self.next_question - time.monotonic(), left_s)))

    def deadline(self) -> float:
        """When `timeout` has passed since the job's start; one good attempt is always made."""
        assert self.state
        started = self.state.start or time.time()
        left_s = started + self.timeout_s - time.time()
        return time.monotonic() + min(max(left_s, min(SETTLE_S, self.timeout_s)), self.timeout_s)

    def check(self, deadline: float, got: str) -> None:
        if time.monotonic() > deadline:
            job_id = self.job.job_id
            raise DeadlineError(
                f"job {job_id} is not ready {show_duration(self.timeout_s)} after its start: {got}. It goes on; come "
                f"back: mpiboot connect {job_id}; end it: mpiboot stop {job_id}\n{self.job.log_tail()}"
            )

    # ---- the job directory

    def wait_for_endpoint(self, queue_timeout_s: float | None) -> tuple[Endpoint, Security | None]:
        self.wait_for_start(queue_timeout_s)
        deadline = self.deadline()
        failing_since: float | None = None
        while True:
            if self.ask().restarting:  # requeued: what it had published is void
                self.wait_for_start(queue_timeout_s)
                deadline, failing_since = self.deadline(), None
            got, verb = self.phase(), " is"
            try:
                endpoint = self.read_endpoint()
                if endpoint is not None:
                    return endpoint, self.verify(endpoint)
                failing_since = None
            except RendezvousError as error:
                got, verb = str(error), ":"
                self.ask_at_once()  # the job may just have ended, or been requeued
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > SETTLE_S:
                    raise RendezvousError(
                        f"job {self.job.job_id} is {self.ask().state}, but {error}\n{self.job.log_tail()}"
                    ) from error
            self.tell(f"job {self.job.job_id}{verb} {got}")
            self.check(deadline, got)
            time.sleep(FILE_POLL_S if time.monotonic() - self.began < 60 else 4 * FILE_POLL_S)

    def read_endpoint(self) -> Endpoint | None:
        """What this run of this job has published; None: nothing yet.

        Raises
        ------
        RendezvousError, SecurityError
            It is not to be trusted, not of this job, or no endpoint.
        """
        directory = self.job.directory
        try:
            # Opening a directory makes NFS look for names that it remembers as missing.
            os.listdir(directory.path)  # noqa: PTH208
            check_trusted(directory.path, "directory")
            endpoint = directory.read_endpoint()
        except FileNotFoundError:
            return None
        if endpoint is None or endpoint.nonce in self.void:
            return None
        if endpoint.job_key != directory.key:
            raise RendezvousError(
                f"{directory.endpoint} is of job {endpoint.job_key}, not of {directory.key}"
            )
        if endpoint.nonce not in self.valid:
            try:
                current = self.job.batch.restarts(self.job.job_id) == endpoint.restart_count
            except BatchError as error:
                raise RendezvousError(f"{error}, when asked how often it was requeued") from error
            (self.valid if current else self.void).add(endpoint.nonce)
            return endpoint if current else None
        return endpoint

    def verify(self, endpoint: Endpoint) -> Security | None:
        """Ask who listens at the published address: the scheduler that published it, or an error."""
        security = self.security(endpoint.address)
        answer = ask_scheduler(endpoint.address, security, ATTEMPT_S)
        check_answer(answer, endpoint.scheduler_id, endpoint.address, endpoint.source_prefix)
        return security

    def security(self, address: str) -> Security | None:
        if address.startswith("tls://"):
            return Security(**client_security_arguments(self.job.directory.path))
        refuse_plain(address, self.insecure)
        return None

    def phase(self) -> str:
        """How far the job is, from its events."""
        with contextlib.suppress(FileNotFoundError):
            return phase_words(self.job.directory.read_events(), self.job.promised_workers())
        return "starting"

    def wait_for_workers(self, client: Client, endpoint: Endpoint, n_workers: int | None) -> bool:
        """Until `n_workers` are there; None: until all are, or those that are lost have not come back.

        Returns
        -------
        bool
            False: the job was requeued meanwhile, and this cluster is gone.
        """
        self.ask()
        deadline = self.deadline()
        enough = time.monotonic() + REPLACED_S
        wanted = endpoint.n_workers if n_workers is None else n_workers
        while (there := count_workers(client)) is None or there < wanted:
            self.tell(f"job {self.job.job_id}: {there or 0} of {wanted} workers")
            if there is None:
                self.ask_at_once()
            if self.ask().restarting:
                return False
            if there and n_workers is None and time.monotonic() > enough:
                self.tell(f"job {self.job.job_id}: {there} of {wanted} workers; the others are lost")
                return True
            self.check(deadline, f"{there or 0} of {wanted} workers")
            time.sleep(FILE_POLL_S)
        self.tell(f"job {self.job.job_id} is ready: {there} workers")
        return True


def phase_words(events: list[dict[str, object]], promised: int | None) -> str:
    """The last step that a job's events tell of, in words."""
    steps = [event for event in events if event["event"] in ("phase", "worker")]
    if not steps:
        return "starting"
    last = steps[-1]
    if last["event"] == "worker":
        return f"starting workers: {last['n']}{f' of {promised}' if promised else ''}"
    words = {"stage": "staging", "launch": "launching", "workers": "starting workers", "closing": "closing"}
    return words.get(str(last["phase"]), str(last["phase"]))


def count_workers(client: Client) -> int | None:
    """Workers that the scheduler has; None when it does not answer."""
    try:
        return len(client.sync(client.scheduler.identity, callback_timeout=ATTEMPT_S)["workers"])
    except (OSError, TimeoutError, asyncio.TimeoutError, RuntimeError):  # two kinds, until Python 3.11
        return None


def check_answer(answer: Answer, scheduler_id: str, address: str, source_prefix: str | None) -> None:
    """The scheduler that answers must be the one that was published, and run this Python.

    Raises
    ------
    RendezvousError
        Another scheduler listens there now.
    MpibootError
        It runs another minor version of Python: what one pickles the other cannot read.
    """
    if answer.scheduler_id != scheduler_id:
        raise RendezvousError(
            f"{address} answers as {answer.scheduler_id}, not as {scheduler_id}: "
            "the cluster that was published there is gone"
        )
    here = sys.version_info[:2]
    if answer.python != here:
        theirs, mine = (f"{major}.{minor}" for major, minor in (answer.python, here))
        remedy = f" Use the cluster's: {source_prefix}/bin/python" if source_prefix else ""
        raise MpibootError(
            f"the cluster runs Python {theirs} and this is {mine} ({sys.executable}): "
            f"what one of them pickles the other cannot read.{remedy}"
        )


def refuse_plain(address: str, insecure: bool) -> None:
    if not insecure:
        raise MpibootError(
            f"{address} is not encrypted: anyone on its network can use and change what you compute there. "
            "If that is what you want, pass insecure=True (mpiboot connect --insecure)"
        )
