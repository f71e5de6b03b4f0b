"""From a job to a connected client: watch the job, trust its endpoint, verify who answers, wait for workers."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed import Client, Security

from mpiboot.batch import JobState
from mpiboot.errors import ClusterLostError, DeadlineError, JobEndedError, RendezvousError
from mpiboot.jobs import Job, find_job, poll_interval_s
from mpiboot.rendezvous import MAX_ENDPOINT_BYTES, Endpoint
from mpiboot.security import check_trusted, client_security_arguments, open_trusted
from mpiboot.units import parse_duration_s, show_duration

Progress = Callable[[str], None]
# How often the job directory is looked at while the job runs; it is a read of one small file.
FILE_POLL_S = 0.25
CONNECT_TIMEOUT_S = 10.0


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
    job
        Job id, job name, or `Job`; None: the only live one.
    scheduler_file
        Instead of a job: Dask's scheduler file of a cluster that was started by hand.
    n_workers
        Workers to wait for; None: all that the job promised.
    timeout
        Seconds, or such as "10 min", from the job's start.
    queue_timeout
        The same from now, while the job is pending; None: as long as the batch system keeps it.
    insecure
        Accept a `tcp://` cluster, which anyone on its network can use.
    progress
        Called with a line whenever something changed.

    Raises
    ------
    JobEndedError
        The job ended; says how, and shows the end of its log.
    DeadlineError
        A TimeoutError that says how far it got.
    RendezvousError
        The endpoint or the scheduler file is not to be trusted, or someone else answers there.
    """
    timeout_s = parse_duration_s(timeout)
    queue_timeout_s = None if queue_timeout is None else parse_duration_s(queue_timeout)
    if scheduler_file is not None:
        return connect_scheduler_file(Path(scheduler_file), n_workers or 0, timeout_s, insecure)
    return Watch(find_job(job), progress or (lambda line: None), insecure).connect(
        n_workers, timeout_s, queue_timeout_s
    )


class Watch:
    """One wait for one job."""

    def __init__(self, job: Job, progress: Progress, insecure: bool) -> None:
        self.job = job
        self.progress = progress
        self.insecure = insecure
        self.told = ""
        self.began = time.monotonic()
        self.next_question = 0.0
        self.state: JobState | None = None

    def connect(self, n_workers: int | None, timeout_s: float, queue_timeout_s: float | None) -> Client:
        self.wait_for_start(queue_timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            endpoint = self.wait_for_endpoint(deadline)
            client = self.try_endpoint(endpoint, deadline)
            if client:
                break
        wanted = endpoint.n_workers if n_workers is None else n_workers
        try:
            self.wait_for_workers(client, wanted, deadline)
        except BaseException:
            client.close()
            raise
        return client

    def ask(self) -> JobState:
        """What the batch system says, asked at most as often as is gentle."""
        now = time.monotonic()
        if self.state is None or now >= self.next_question:
            self.state = self.job.ask()
            self.next_question = now + poll_interval_s(now - self.began)
        if not self.state.live:
            how = f"{self.state.state}{f' ({self.state.reason})' if self.state.reason else ''}"
            raise JobEndedError(f"job {self.job.job_id} has ended: {how}.\n{self.job.log_tail()}")
        return self.state

    def say(self, line: str) -> None:
        if line != self.told:
            self.told = line
            self.progress(line)

    def wait_for_start(self, queue_timeout_s: float | None) -> None:
        while (state := self.ask()).pending:
            estimate = f", may start {state.start}" if state.start not in ("", "N/A") else ""
            self.say(
                f"job {self.job.job_id} is {state.state} ({state.reason or 'no reason given'}{estimate})"
            )
            waited = time.monotonic() - self.began
            if queue_timeout_s is not None and waited >= queue_timeout_s:
                raise DeadlineError(
                    f"job {self.job.job_id} is still {state.state} after {show_duration(waited)}: {state.reason}. "
                    f"Go on waiting: mpiboot connect {self.job.job_id}; give it up: mpiboot stop {self.job.job_id}"
                )
            time.sleep(poll_interval_s(waited))

    def wait_for_endpoint(self, deadline: float) -> Endpoint:
        while True:
            state = self.ask()
            if state.pending:  # requeued: what it had published is not to be used
                self.wait_for_start(None)
                continue
            if (endpoint := self.read_endpoint()) is not None:
                return endpoint
            self.say(f"job {self.job.job_id} is {self.phase()} on {state.nodes}")
            self.check(deadline, self.phase())
            time.sleep(FILE_POLL_S)

    def read_endpoint(self) -> Endpoint | None:
        with contextlib.suppress(FileNotFoundError):
            check_trusted(self.job.directory.path, "directory")
            endpoint = self.job.directory.read_endpoint()
            if endpoint and endpoint.job_key != self.job.directory.key:
                raise RendezvousError(
                    f"{self.job.directory.endpoint} is of job {endpoint.job_key}, not of {self.job.directory.key}"
                )
            return endpoint
        return None

    def phase(self) -> str:
        """How far the job is, from its events."""
        phases = []
        with contextlib.suppress(FileNotFoundError):
            phases = [
                event for event in self.job.directory.read_events() if event["event"] in ("phase", "worker")
            ]
        if not phases:
            return "starting"
        last = phases[-1]
        if last["event"] == "worker":
            return f"starting workers ({last['n']} so far)"
        words = {"stage": "staging", "launch": "launching", "workers": "starting workers"}
        return words.get(str(last["phase"]), str(last["phase"]))

    def check(self, deadline: float, got: str) -> None:
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"job {self.job.job_id} is not ready in time: {got}. It goes on; come back to it with "
                f"mpiboot connect {self.job.job_id}, or end it with mpiboot stop {self.job.job_id}\n{self.job.log_tail()}"
            )

    def try_endpoint(self, endpoint: Endpoint, deadline: float) -> Client | None:
        """A client of the scheduler that published `endpoint`; None when nobody answers there (yet)."""
        security = self.security(endpoint.address)
        try:
            client = Client(endpoint.address, security=security, timeout=CONNECT_TIMEOUT_S, name="mpiboot")
        except (OSError, TimeoutError) as error:
            self.next_question = 0.0  # the job may just have ended: ask now
            self.ask()
            self.check(deadline, f"the scheduler at {endpoint.address} does not answer ({error})")
            time.sleep(1)
            return None
        verify_identity(client, endpoint.scheduler_id, endpoint.address)
        return client

    def security(self, address: str) -> Security | None:
        if address.startswith("tls://"):
            return Security(**client_security_arguments(self.job.directory.path))
        refuse_plain(address, self.insecure)
        return None

    def wait_for_workers(self, client: Client, wanted: int, deadline: float) -> None:
        while True:
            there = count_workers(client)
            if there is None:
                self.next_question = 0.0
                self.ask()
                raise ClusterLostError(
                    f"the scheduler of job {self.job.job_id} is gone.\n{self.job.log_tail()}"
                )
            self.say(f"{there} of {wanted} workers")
            if there >= wanted:
                return
            self.ask()
            self.check(deadline, f"{there} of {wanted} workers")
            time.sleep(FILE_POLL_S)


def count_workers(client: Client) -> int | None:
    """Workers that the scheduler has; None when it does not answer."""
    try:
        return len(client.run_on_scheduler(_count))
    except (OSError, TimeoutError, RuntimeError):
        return None


def _count(dask_scheduler: Any) -> list[str]:
    return list(dask_scheduler.workers)


def verify_identity(client: Client, expected: str, address: str) -> None:
    """The scheduler that answers must be the one that was published: an address may have been reused."""
    found = client.scheduler_info()["id"]
    if found != expected:
        client.close()
        raise RendezvousError(
            f"{address} answers as {found}, not as {expected}: the cluster that was published there is gone"
        )


def refuse_plain(address: str, insecure: bool) -> None:
    if not insecure:
        raise RendezvousError(
            f"{address} is not encrypted: anyone on its network can use and change what you compute there. "
            "If that is what you want, pass insecure=True"
        )


def connect_scheduler_file(path: Path, n_workers: int, timeout_s: float, insecure: bool) -> Client:
    """Connect to a cluster that was started by hand, by Dask's own scheduler file.

    Missing, empty and half-written files are waited for; one of an earlier cluster is told by its `id`.
    """
    deadline = time.monotonic() + timeout_s
    problem = "it does not exist"
    while True:
        try:
            found = json.loads(open_trusted(path, MAX_ENDPOINT_BYTES))
            address, scheduler_id = str(found["address"]), str(found["id"])
        except FileNotFoundError:
            problem = "it does not exist"
        except (ValueError, KeyError, TypeError):
            problem = "it is empty, half-written, or no scheduler file"
        else:
            security = None
            if address.startswith("tls://"):
                security = Security()
            else:
                refuse_plain(address, insecure)
            try:
                client = Client(address, security=security, timeout=CONNECT_TIMEOUT_S)
            except (OSError, TimeoutError) as error:
                problem = f"nobody answers at {address} ({error}); the file may be of a cluster that is gone"
            else:
                verify_identity(client, scheduler_id, address)
                client.wait_for_workers(n_workers, timeout=max(1.0, deadline - time.monotonic()))
                return client
        if time.monotonic() > deadline:
            raise DeadlineError(f"scheduler file {path}: {problem}, after {show_duration(timeout_s)}")
        time.sleep(FILE_POLL_S)
