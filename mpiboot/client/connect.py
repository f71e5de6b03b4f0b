"""From a job to a connected client: watch the job, trust its endpoint, verify who answers, wait for workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from distributed import Client, Security

from mpiboot.batch import JobState
from mpiboot.client import progress as display
from mpiboot.client.job_states import answers_of
from mpiboot.client.jobs import SILENCE_S, Job, find_job, poll_interval_s
from mpiboot.client.progress import Progress
from mpiboot.client.verify import Answer, ask_scheduler
from mpiboot.common.trust import check_trusted, open_trusted
from mpiboot.common.units import parse_duration_s, show_duration
from mpiboot.errors import (
    BatchError,
    DeadlineError,
    JobEndedError,
    MpibootError,
    RendezvousError,
    UsageError,
)
from mpiboot.protocol.job_directory import MAX_ENDPOINT_BYTES, Endpoint
from mpiboot.protocol.secrets import client_security_arguments

logger = logging.getLogger(__name__)

# How often the job directory is looked at while the job runs; it is a read of two small files.
FILE_POLL_S = 0.25
ATTEMPT_S = 4.0
# A published address where nobody, or somebody else, answers for this long is given up.
SETTLE_S = 8.0
# All workers were there when the endpoint was published: those that a nanny replaces are back by then.
REPLACED_S = 15.0


def connect(
    job: str | Job | None = None,
    *,
    scheduler_file: str | Path | None = None,
    n_workers: int | None = None,
    timeout: str | float = "10 min",
    queue_timeout: str | float | None = None,
    insecure: bool = False,
    progress: Progress | None = None,
) -> Client:
    """Wait for a job's cluster and connect to it.

    Parameters
    ----------
    job : str or Job, optional
        Job id, job name, or `Job`; None: the only live one.
    scheduler_file : path, optional
        Instead of a job: Dask's scheduler file of a cluster that was started by hand.
    n_workers : int, optional
        Workers to wait for; None: all that the job promised, or of a cluster that has lost some since, those left.
        A scheduler file promises none.
    timeout : float or str, seconds, default "10 min"
        From the job's start.
    queue_timeout : float or str, seconds, optional
        From now, while the job is pending; None: as long as the batch system says that it may start.
    insecure : bool, default False
        Accept a `tcp://` cluster, which anyone on its network can use.
    progress : callable, optional
        Called with a line whenever something changed. None: a display in a terminal and in a notebook.

    Returns
    -------
    distributed.Client

    Raises
    ------
    JobEndedError
        The job ended, or can never start; says how, and shows the end of its log.
    DeadlineError
        A TimeoutError that says how far it got.
    RendezvousError
        The endpoint or the scheduler file is not to be trusted, or nobody or someone else answers there.
    """
    timeout_s = seconds_of("timeout", timeout)
    queue_timeout_s = None if queue_timeout is None else seconds_of("queue_timeout", queue_timeout)
    with display.chosen(progress) as tell:
        if scheduler_file is not None:
            return connect_scheduler_file(Path(scheduler_file), n_workers, timeout_s, insecure, tell)
        found = find_job(job)
        try:
            while True:
                endpoint, security = wait_for_endpoint(
                    found, timeout_s=timeout_s, queue_timeout_s=queue_timeout_s, insecure=insecure, tell=tell
                )
                client = Client(endpoint.address, security=security, timeout=3 * ATTEMPT_S)
                with closed_on_error(client):
                    watch = Watch(found, tell, insecure, timeout_s)
                    if watch.wait_for_workers(client, endpoint, n_workers):
                        return client
                client.close()  # the job was requeued: on to its next run
        except KeyboardInterrupt:
            raise KeyboardInterrupt(how_to_come_back(found)) from None


def seconds_of(name: str, value: str | float) -> float:
    """An argument that is a time."""
    try:
        return parse_duration_s(value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error


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


def connect_scheduler_file(
    path: Path, n_workers: int | None, timeout_s: float, insecure: bool, tell: Progress
) -> Client:
    """Connect to a cluster that was started by hand, by Dask's own scheduler file.

    A missing file is waited for until the timeout. One that stays empty, half-written, or of a cluster that does
    not answer any more is given up soon: a scheduler listens before it writes its file, in one go.
    """
    deadline = time.monotonic() + timeout_s
    content, since = b"", time.monotonic()
    while True:
        settled = False
        try:
            found = open_trusted(path, MAX_ENDPOINT_BYTES, secret=False)
            if found != content:
                content, since = found, time.monotonic()
            settled = time.monotonic() - since > SETTLE_S
            client = _connect_to(path, found, insecure)
            break
        except FileNotFoundError:
            content, problem = b"", "it does not exist"
        except RendezvousError as error:
            problem = str(error)
            if settled:
                raise RendezvousError(
                    f"scheduler file {path}: {problem}. Remove it, and start the cluster"
                ) from error
        tell(f"scheduler file {path}: {problem}")
        if time.monotonic() > deadline:
            raise DeadlineError(f"scheduler file {path}: {problem}, after {show_duration(timeout_s)}")
        time.sleep(FILE_POLL_S)
    wanted = n_workers or 0
    with closed_on_error(client):
        while (there := count_workers(client) or 0) < wanted:
            got = f"scheduler file {path}: {there} of {wanted} workers"
            tell(got)
            if time.monotonic() > deadline:
                raise DeadlineError(f"{got}, after {show_duration(timeout_s)}")
            time.sleep(FILE_POLL_S)
    return client


def _connect_to(path: Path, content: bytes, insecure: bool) -> Client:
    """A client of the very scheduler that wrote `content`."""
    try:
        found = json.loads(content)
        address, scheduler_id = str(found["address"]), str(found["id"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RendezvousError("it is empty, half-written, or no scheduler file") from error
    if not address.startswith("tls://"):
        refuse_plain(address, insecure)
        security = None
    else:
        security = _security_for(path)
    check_answer(ask_scheduler(address, security, ATTEMPT_S), scheduler_id, address, None)
    return Client(address, security=security, timeout=3 * ATTEMPT_S)


def _security_for(path: Path) -> Security:
    """The TLS files beside the scheduler file of a job of mpiboot's, else those of Dask's configuration."""
    if (path.parent / "tls").is_dir():
        return Security(**client_security_arguments(path.parent))
    return Security()
