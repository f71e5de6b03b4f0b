"""The end of a boot: closes all that the boot has opened, in an order that leaves nothing behind.

Only boot imports this module.
"""

import contextlib
import logging
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from mpiboot.boot.agents import Agents
from mpiboot.boot.cluster import Cluster
from mpiboot.boot.context import Context
from mpiboot.common.faults import system_error
from mpiboot.common.processes import end, end_descendants
from mpiboot.config import Config
from mpiboot.errors import SecurityError
from mpiboot.protocol.events import last_event
from mpiboot.protocol.job_directory import JobDirectory

logger = logging.getLogger(__name__)

# The job's exit status for each reason of a close; the launcher's exit status tells nothing.
STATUS_OF_REASON = {"client-shutdown": 0, "stopped": 0, "idle-timeout": 0, "walltime": 124}
# Of a batch command that SIGTERM has ended, as of a shell: its results are not there, whoever has stopped the job.
COMMAND_STOPPED = 128 + signal.SIGTERM
# How long each part may take to end by itself. Together less than 15 s, except for a command at the walltime.
COMMAND_GRACE_S = 5.0
COMMAND_GRACE_AT_WALLTIME_S = 10.0
SCHEDULER_CLOSE_S = 3.0
RANKS_CLOSE_S = 4.0
AGENTS_CLOSE_S = 10.0


@dataclass
class Opened:
    """All that a boot has opened so far; each step sets its attribute as soon as the object exists.

    Attributes
    ----------
    agents : Agents or None
        The agents on the nodes.
    cluster : Cluster or None
        The connection to the scheduler.
    ranks : Popen or None
        The launcher of the ranks.
    command : Popen or None
        The command of batch mode.
    """

    agents: Agents | None = None
    cluster: Cluster | None = None
    ranks: "subprocess.Popen[bytes] | None" = None
    command: "subprocess.Popen[bytes] | None" = None


def status_of_stop(reason: str, config: Config) -> int:
    """Return the job's exit status after a `JobStop`: a batch system, too, stops a job, such as when a node fails it."""
    return COMMAND_STOPPED if config.command and reason == "stopped" else STATUS_OF_REASON[reason]


def close(context: Context, opened: Opened, status: int, reason: str) -> None:
    """Close what is open, in this order: command, clients, ranks, files on the nodes, secrets.

    Parameters
    ----------
    context : Context
        Options, allocation and directories of this boot.
    opened : Opened
        The objects to close.
    status : int
        The job's exit status.
    reason : str
        Why the job ends; the lines after the first are details.
    """
    short_reason, _, detail = reason.partition("\n")
    # After a requeue, another boot uses the job directory.
    replaced = opened.agents is not None and opened.agents.are_replaced()
    # If this node, the first, was cut off, another node's agent has cancelled the job and recorded its end.
    recorded = replaced or is_recorded(context.directory)
    if not recorded:
        context.events.phase("closing", reason=short_reason)
    if not replaced:
        with going_on():
            context.directory.endpoint.unlink(missing_ok=True)
    if opened.command and opened.command.poll() is None:
        # While the cluster is still there, so that the command can save its results.
        opened.command.terminate()
        end(opened.command, COMMAND_GRACE_AT_WALLTIME_S if reason == "walltime" else COMMAND_GRACE_S, 0)
    if opened.cluster and opened.cluster.send("close", reason=reason):
        deadline = time.monotonic() + SCHEDULER_CLOSE_S
        while not opened.cluster.gone and time.monotonic() < deadline:
            opened.cluster.listen()
    if opened.ranks:
        # MPI_Finalize, or a nanny that hangs, must not hold the nodes.
        end(opened.ranks, RANKS_CLOSE_S if opened.cluster and opened.cluster.gone else 0, 1)
    end_descendants(spare=opened.agents.process.pid if opened.agents else None)
    if opened.cluster:
        opened.cluster.close()
    if opened.agents:
        opened.agents.close(short_reason, AGENTS_CLOSE_S)
    if not replaced:
        with going_on():
            context.directory.clear()
    if not recorded:
        context.events.write("closed", reason=short_reason, detail=detail, exit_status=status)
    logger.info("closed: %s (status %d)", short_reason, status)


@contextlib.contextmanager
def going_on() -> Iterator[None]:
    """Log an error of the shared file system: it must not keep the job's processes from ending."""
    try:
        yield
    except OSError as error:
        logger.warning("%s", system_error(error))


def is_recorded(directory: JobDirectory) -> bool:
    """Whether the job's last event is already its end, `closed`."""
    try:
        events = directory.read_events()
    except (OSError, SecurityError):
        return False
    return bool(last_event(events)["event"] == "closed")
