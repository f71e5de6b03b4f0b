"""The ports of a job between firewalls: `--worker-port LOW:HIGH`, divided among the processes of each node.

Client and boot import this module; it imports the errors.
"""

import random
import socket
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mpiboot.errors import UsageError

# Open MPI's launcher listens on all ports that it may use: it gets these.
LAUNCHER_PORTS = 2
# The fewest ports that a job can do with: of its fifth part, boot, agent, scheduler, dashboard and launcher take six.
FEWEST = 30


class PortPlan(NamedTuple):
    """The ports of each kind of process, the same on every node: five equal parts.

    Attributes
    ----------
    nannies, workers, pages, ranks : range
        Those of the nannies, of their workers, of the workers' HTTP servers, and of MPI in each rank.
    others : range
        Those of everything else: boot, agents, scheduler, dashboard, the launcher of the ranks.
    """

    nannies: range
    workers: range
    pages: range
    ranks: range
    others: range


def port_range(text: str) -> range:
    """Return the ports of `LOW:HIGH`, both included."""
    low, high = map(int, text.split(":"))
    return range(low, high + 1)


def divide(text: str) -> PortPlan:
    """Divide the ports of `LOW:HIGH`, which `check_ports` has accepted."""
    ports = port_range(text)
    fifth = len(ports) // 5
    nannies, workers, pages, ranks = (ports[part * fifth :][:fifth] for part in range(4))
    return PortPlan(nannies, workers, pages, ranks, ports[4 * fifth :])


def other_ports(text: str | None) -> range:
    """Return the ports of what is neither worker nor nanny; only 0, any port, if the user has named no range."""
    return divide(text).others if text else range(1)


def check_ports(text: str, n_workers: int, where: str) -> None:
    """Refuse a range that has too few ports for a node's workers.

    Parameters
    ----------
    text : str
        `LOW:HIGH`.
    n_workers : int
        Workers on the node.
    where : str
        Names the node, for the message.

    Raises
    ------
    UsageError
        There are too few.
    """
    # The first node has the scheduler's rank, too.
    n_ports, needed = len(port_range(text)), max(FEWEST, 5 * (n_workers + 1))
    if n_ports < needed:
        raise UsageError(
            f"--worker-port {text} has {n_ports} ports; {n_workers} worker(s) on {where} need {needed}",
            "Name a wider range that is open between the nodes, or ask for fewer workers with --workers-per-node",
        )


def choose_free(ports: Sequence[int], count: int, *, but: Iterable[int] = ()) -> list[int]:
    """Return some ports on which nothing of this host listens, chosen at random since several jobs may choose at once.

    Parameters
    ----------
    ports : sequence of int
        The ports to choose from.
    count : int
        How many to choose.
    but : iterable of int
        Ports that are taken.

    Raises
    ------
    UsageError
        Fewer are free.
    """
    taken = set(but)
    shuffled = random.sample(ports, len(ports))
    free = (port for port in shuffled if port not in taken and is_free(port))
    chosen = [port for port, _ in zip(free, range(count), strict=False)]
    if len(chosen) < count:
        raise UsageError(
            f"--worker-port: {socket.gethostname()} has too few free ports between {ports[0]} and {ports[-1]}",
            "Name a wider range that is open between the nodes, or wait until your other jobs there have ended",
        )
    return chosen


def is_free(port: int) -> bool:
    """Whether nothing on this host listens on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else connections that were closed count
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
