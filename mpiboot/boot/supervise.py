"""Steps 6 and 9 of a boot: what the cluster does, what it loses, and when that is the end. Standard library only."""

import logging
import signal
import time
from collections.abc import Iterator
from typing import Any

from mpiboot.batch import allocation as allocations
from mpiboot.batch.sizing import Sizing
from mpiboot.boot.launch import launch_failure, start_command
from mpiboot.boot.signals import CLOSE_BEFORE_END_S, Walltime
from mpiboot.boot.state import Job, Worker
from mpiboot.common.logs import tail
from mpiboot.common.processes import process_start
from mpiboot.common.units import show_duration, show_size
from mpiboot.errors import BatchError, ClusterLostError, DeadlineError, LaunchError
from mpiboot.protocol.node import SCHEDULER_PID_NAME

logger = logging.getLogger(__name__)

POLL_S = 0.2
# A nanny starts a lost worker anew: the only worker of a job may be away for this long.
MIN_WORKERS_GRACE_S = 30.0
NODE_GRACE_S = 10.0
# A client that has just connected may not listen yet.
NEW_CLIENT_S = 2.0
# In the last minutes the batch system is asked this often whether the end has moved.
ASK_END_S = 30.0
# Reasons for a close, and the status that the job then ends with (design: never the launcher's own).
STATUS_OF_REASON = {"client-shutdown": 0, "stopped": 0, "idle-timeout": 0, "walltime": 124}


def messages(job: Job, timeout_s: float) -> Iterator[dict[str, Any]]:
    """What the scheduler's preload says, noted in `job.cluster` and in the events on its way."""
    assert job.control
    for message in job.control.poll(timeout_s):
        note(job, message)
        yield message


def note(job: Job, message: dict[str, Any]) -> None:
    """Take one message in."""
    cluster = job.cluster
    match message["event"]:
        case "scheduler":
            cluster.scheduler = message
        case "worker":
            rank = message["name"].rpartition("-")[2]
            worker = Worker(job.node_of_ip.get(message["ip"], "?"), int(rank) if rank.isdigit() else None)
            cluster.workers[message["address"]] = worker
            cluster.lost_nodes.pop(worker.host, None)
            job.events.write(**message, host=worker.host, rank=worker.rank)
        case "lost-worker":
            lost_worker(job, message)
        case "worker-exit":
            worker_exit(job, message)
        case "hung-worker":
            hung_worker(job, message)
        case "client":
            cluster.newest_client = time.monotonic()
            job.events.write(**message)
        case "closed":
            cluster.close_reason = message["reason"]
        case "disconnected":
            cluster.gone = True
        case _:
            job.events.write(**message)


def lost_worker(job: Job, message: dict[str, Any]) -> None:
    cluster = job.cluster
    worker = cluster.workers.pop(message["address"], Worker("?", None))
    job.events.write(**message, host=worker.host, rank=worker.rank, done="its tasks run on the other workers")
    logger.warning(
        "lost the worker of rank %s on %s (%s); %d left",
        worker.rank,
        worker.host,
        message["address"],
        message["n"],
    )
    if worker.host != "?" and all(other.host != worker.host for other in cluster.workers.values()):
        cluster.lost_nodes[worker.host] = time.monotonic()


def hung_worker(job: Job, message: dict[str, Any]) -> None:
    worker = job.cluster.workers.get(message["address"], Worker("?", None))
    done = "it is ended, and its tasks run on the other workers"
    job.events.write(**message, host=worker.host, rank=worker.rank, done=done)
    logger.warning(
        "the worker of rank %s on %s hangs: silent for %s; it is ended",
        worker.rank,
        worker.host,
        show_duration(message["silent_s"]),
    )


def note_lost_nodes(job: Job) -> None:
    """A node is lost when no worker has come back there for longer than a nanny needs to start one."""
    cluster = job.cluster
    for host, since in cluster.lost_nodes.items():
        if since is not None and time.monotonic() - since > NODE_GRACE_S:
            cluster.lost_nodes[host] = None  # said
            left = len(cluster.workers)
            job.events.write("lost-node", host=host, n=left, done="its tasks run on the other nodes")
            logger.warning("no worker is left on %s; %d elsewhere", host, left)


def worker_exit(job: Job, message: dict[str, Any]) -> None:
    """A nanny says how its worker's process ended."""
    status = message["exit_status"]
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    if message["memory"] == "limit":
        how = f"for its memory: it came near its limit of {show_size(message['limit_bytes'])}"
    elif message["memory"] == "cgroup":
        how = "for its memory: the kernel ended it, over the job's memory limit"
    host = job.node_of_ip.get(message.pop("ip"), "?")
    number = message.pop("name").rpartition("-")[2]
    rank = int(number) if number.isdigit() else None
    job.events.write(**message, host=host, rank=rank, how=how, done="its nanny starts another")
    logger.warning("the worker of rank %s on %s ended %s; its nanny starts another", rank, host, how)


def wait_for_workers(job: Job, sizing: Sizing) -> None:
    """Step 6: until every worker has answered."""
    assert job.ranks
    expected = sizing.n_workers
    job.events.phase("workers", n_workers=expected)
    deadline = time.monotonic() + job.config.start_timeout
    while len(job.cluster.workers) < expected:
        for _ in messages(job, POLL_S):
            pass
        if job.cluster.gone or job.ranks.poll() is not None or scheduler_died(job):
            raise LaunchError(launch_failure(job, expected))
        if time.monotonic() > deadline:
            here = [worker.host for worker in job.cluster.workers.values()]
            missing = {name: node.n_workers - here.count(name) for name, node in sizing.by_node.items()}
            each = ", ".join(f"{count} on {node}" for node, count in missing.items() if count)
            raise DeadlineError(
                f"{len(job.cluster.workers)} of {expected} workers after {show_duration(job.config.start_timeout)}; "
                f"missing: {each}.\nThe end of {job.directory.ranks_log}:\n{tail(job.directory.ranks_log)}"
            )
    logger.info("%d of %d workers", len(job.cluster.workers), expected)


def scheduler_died(job: Job) -> bool:
    """Whether rank 0 ended before it spoke to boot: the launcher lets the others wait for it for ever."""
    try:
        pid = (job.local_folder / SCHEDULER_PID_NAME).read_text()
    except FileNotFoundError:
        return False
    return job.cluster.scheduler is None and bool(pid) and process_start(int(pid)) is None


def supervise(job: Job, walltime: Walltime) -> tuple[int, str]:
    """Step 9: until the command ends, a client or the idle timeout closes the cluster, or it is lost.

    Returns
    -------
    tuple[int, str]
        The job's exit status, and the reason.
    """
    assert job.ranks
    job.command = start_command(job)
    few = FewWorkers(job)
    warning = WalltimeWarning(job, walltime)
    while not job.cluster.gone and not launcher_died(job):
        for _ in messages(job, POLL_S):
            pass
        if job.command and (status := job.command.poll()) is not None:
            return (status if status >= 0 else 128 - status), f"command ended with status {status}"
        note_lost_nodes(job)
        few.check()
        warning.check()
    for _ in messages(job, POLL_S):
        pass
    if job.cluster.close_reason is None:
        raise ClusterLostError(cluster_lost(job))
    return STATUS_OF_REASON.get(job.cluster.close_reason, 1), job.cluster.close_reason


def launcher_died(job: Job) -> bool:
    """Whether someone killed mpirun. One that gives up by itself, over a lost node say, is needed no more (adopt.py)."""
    assert job.ranks
    status = job.ranks.poll()
    if status is None or job.cluster.launcher_ended:
        return False
    if status < 0 or status > 128:
        return True
    job.cluster.launcher_ended = True
    if job.cluster.close_reason is None:
        job.events.write("launcher-ended", status=status, done="the ranks go on without it")
        logger.warning("mpirun ended with status %d; the ranks go on without it", status)
    return False


def cluster_lost(job: Job) -> str:
    """What died, as far as can be told; clients, tasks and results went with it."""
    assert job.ranks
    status = job.ranks.poll()
    first = job.allocation.nodes[0].name
    if status is None or job.cluster.gone:
        what = f"the scheduler (rank 0, on {first}) died"
    else:
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        what = f"mpirun, on {first}, {how}"
    log = job.directory.ranks_log
    return f"{what}; all results went with it. Submit again.\nThe end of {log}:\n{tail(log)}"


class FewWorkers:
    """Ends the job once too few workers have been left for longer than a nanny needs to start one."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.since: float | None = None

    def check(self) -> None:
        left, wanted = len(self.job.cluster.workers), self.job.config.min_workers
        if left >= wanted or self.job.cluster.close_reason:
            self.since = None
            return
        if self.since is None:
            self.since = time.monotonic()
            logger.warning(
                "%d workers are left, fewer than --min-workers %d: the job ends unless they are back in %s",
                left,
                wanted,
                show_duration(MIN_WORKERS_GRACE_S),
            )
        elif time.monotonic() - self.since > MIN_WORKERS_GRACE_S:
            raise ClusterLostError(
                f"{left} workers are left, fewer than --min-workers {wanted}, for {show_duration(MIN_WORKERS_GRACE_S)}. "
                f"What was lost, when and where: {self.job.directory.events}"
            )


class WalltimeWarning:
    """Tells the clients that the walltime nears, once the batch system has said so again: jobs are lengthened."""

    def __init__(self, job: Job, walltime: Walltime) -> None:
        self.job = job
        self.walltime = walltime
        self.next_question = 0.0
        self.told_end: float | None = None
        self.told = 0.0

    def check(self) -> None:
        if (
            self.told_end is not None
            and self.told < self.job.cluster.newest_client < time.monotonic() - NEW_CLIENT_S
        ):
            self.tell(self.told_end)
        if not self.walltime.nears or time.monotonic() < self.next_question:
            return
        self.next_question = time.monotonic() + ASK_END_S
        try:
            self.walltime.set_end(allocations.end_time(self.job.allocation) or self.walltime.end_time)
        except BatchError as error:
            logger.warning("the walltime nears, and its end could not be asked: %s", error)
        end = self.walltime.end_time or time.time() + self.walltime.left_s()
        if self.walltime.nears and (self.told_end is None or abs(end - self.told_end) > 1):
            self.tell(end)

    def tell(self, end: float) -> None:
        self.told_end, self.told = end, time.monotonic()
        left_s = end - time.time()
        text = (
            f"the walltime of job {self.job.allocation.job_id} ends in {show_duration(left_s)}; "
            f"the cluster closes {show_duration(CLOSE_BEFORE_END_S)} before that. Save your results"
        )
        logger.warning("%s", text)
        warning = {"event": "walltime", "time_left_s": round(left_s, 1), "end_time": end, "text": text}
        assert self.job.control
        told = self.job.control.send("announce", message=warning)
        self.job.events.write(
            "walltime-nears", time_left_s=round(left_s, 1), done="clients were told" if told else ""
        )
