"""The running cluster as boot knows it, from the reports of the scheduler's preload; losses go into the job's events.

Only boot imports this module.
"""

import logging
import time
from dataclasses import dataclass
from typing import Any

from mpiboot.boot.control import Control
from mpiboot.common.units import show_duration, show_size
from mpiboot.protocol.events import EventLog

logger = logging.getLogger(__name__)

POLL_S = 0.2
# A nanny starts a lost worker again: a node without workers is lost only after this long.
NODE_GRACE_S = 10.0
UNKNOWN_NODE = "?"
# What a lost worker takes with it.
COMPUTED_AGAIN = "its tasks, and the results that it alone held, are computed again elsewhere"
MORE_MEMORY = "for more memory each: --mem, or fewer --workers-per-node"


@dataclass(frozen=True)
class Worker:
    """A worker that is connected to the scheduler.

    Attributes
    ----------
    node : str
        The node that it runs on.
    rank : int or None
        The rank of its nanny; a worker that replaces this one has the same. None if the worker's name does not tell.
    """

    node: str
    rank: int | None


class Cluster:
    """The running cluster.

    Parameters
    ----------
    control : Control
        Boot's end of the socket to the scheduler.
    events : EventLog
        The job's event log, which records lost workers and nodes.
    node_of_address : dict of str to str
        Each node's name, by its address.

    Attributes
    ----------
    scheduler : dict or None
        The scheduler's `id`, `address` and `dashboard_port`, once it has connected.
    workers : dict of str to Worker
        The connected workers, by address.
    close_reason : str or None
        Why the scheduler closed; None if it gave no reason.
    gone : bool
        Whether the scheduler has connected and then disconnected.
    n_retired : int
        How many workers clients have retired.
    newest_client : float
        When the newest client connected (time.monotonic).
    """

    def __init__(self, control: Control, events: EventLog, node_of_address: dict[str, str]) -> None:
        self._control = control
        self._events = events
        self._node_of_address = node_of_address
        self.scheduler: dict[str, Any] | None = None
        self.workers: dict[str, Worker] = {}
        self.close_reason: str | None = None
        self.gone = False
        self.n_retired = 0
        self.newest_client = 0.0
        self._empty_since: dict[str, float] = {}
        self._lost_nodes: set[str] = set()

    def listen(self, timeout_s: float = POLL_S) -> None:
        """Process the scheduler's messages; wait up to `timeout_s` seconds for the first."""
        for message in self._control.poll(timeout_s):
            self.note(message)

    def send(self, command: str, **details: Any) -> bool:
        """Send a command to the scheduler; return False if it is not connected."""
        return self._control.send(command, **details)

    def close(self) -> None:
        """Close the socket to the scheduler."""
        self._control.close()

    def note(self, message: dict[str, Any]) -> None:
        """Process one message; `protocol.control` lists the messages."""
        match message["event"]:
            case "scheduler":
                self.scheduler = message
            case "worker":
                self._note_worker(message)
            case "lost-worker":
                self._note_lost_worker(message)
            case "retired-worker":
                self._note_retired_worker(message)
            case "worker-exit":
                self._note_worker_exit(message)
            case "hung-worker":
                self._note_hung_worker(message)
            case "client":
                self.newest_client = time.monotonic()
                self._events.write(**message)
            case "closed":
                self.close_reason = message["reason"]
            case "disconnected":
                self.gone = True
            case _:
                self._events.write(**message)

    def _note_worker(self, message: dict[str, Any]) -> None:
        worker = Worker(self._node(message["ip"]), _rank(message["name"]))
        self.workers[message["address"]] = worker
        self._empty_since.pop(worker.node, None)
        self._lost_nodes.discard(worker.node)
        self._events.write(**message, host=worker.node, rank=worker.rank)

    def _note_lost_worker(self, message: dict[str, Any]) -> None:
        worker = self.workers.pop(message["address"], Worker(UNKNOWN_NODE, None))
        self._events.write(**message, host=worker.node, rank=worker.rank, done=COMPUTED_AGAIN)
        logger.warning(
            "lost the worker of rank %s on %s (%s); %d left; %s",
            worker.rank,
            worker.node,
            message["address"],
            message["n"],
            COMPUTED_AGAIN,
        )
        if worker.node != UNKNOWN_NODE and all(other.node != worker.node for other in self.workers.values()):
            self._empty_since[worker.node] = time.monotonic()
            self._lost_nodes.discard(worker.node)

    def _note_retired_worker(self, message: dict[str, Any]) -> None:
        """Process the end of a worker that a client has retired: it is not lost, and nothing replaces it."""
        worker = self.workers.pop(message["address"], Worker(UNKNOWN_NODE, None))
        self.n_retired += 1
        self._events.write(**message, host=worker.node, rank=worker.rank)
        logger.info("a client has retired the worker of rank %s on %s", worker.rank, worker.node)

    def _note_worker_exit(self, message: dict[str, Any]) -> None:
        """Process a nanny's message about how its worker's process ended."""
        status = message["exit_status"]
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        done = f"its nanny starts another; {COMPUTED_AGAIN}"
        if message["memory"]:
            limit = show_size(message["limit_bytes"])
            how = f"because of its memory: it came near its limit of {limit}"
            if message["memory"] == "cgroup":
                how = f"because of its memory: the kernel killed it at the job's memory limit (its own is {limit})"
            done += f"; {MORE_MEMORY}"
        node, rank = self._node(message.pop("ip")), _rank(message.pop("name"))
        self._events.write(**message, host=node, rank=rank, how=how, done=done)
        logger.warning("the worker of rank %s on %s ended %s; %s", rank, node, how, done)

    def _note_hung_worker(self, message: dict[str, Any]) -> None:
        worker = self.workers.get(message["address"], Worker(UNKNOWN_NODE, None))
        done = f"it is terminated; {COMPUTED_AGAIN}"
        self._events.write(**message, host=worker.node, rank=worker.rank, done=done)
        logger.warning(
            "the worker of rank %s on %s hangs: silent for %s; it is terminated",
            worker.rank,
            worker.node,
            show_duration(message["silent_s"]),
        )

    def note_lost_nodes(self) -> None:
        """Consider a node lost if it has had no worker for longer than a nanny needs to start one."""
        for node, since in list(self._empty_since.items()):
            if time.monotonic() - since > NODE_GRACE_S:
                del self._empty_since[node]
                self._lost_nodes.add(node)
                n_workers = len(self.workers)
                self._events.write("lost-node", host=node, n=n_workers, done=COMPUTED_AGAIN)
                logger.warning("no worker is left on %s; %d elsewhere; %s", node, n_workers, COMPUTED_AGAIN)

    def _node(self, address: str) -> str:
        return self._node_of_address.get(address, UNKNOWN_NODE)


def _rank(name: str) -> int | None:
    """The rank in a worker's name, such as `mpiboot-3`."""
    number = name.rpartition("-")[2]
    return int(number) if number.isdigit() else None
