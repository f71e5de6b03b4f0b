"""The ports of the ranks, where a firewall is between the nodes, or the user has named them.

Only boot imports this module.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from envpack.common.places import host_name
from mpiboot.batch.sizing import Sizing
from mpiboot.common.ports import LAUNCHER_PORTS, check_ports, choose_free, divide, is_free
from mpiboot.config import Config
from mpiboot.errors import UsageError
from mpiboot.protocol.variables import MPI_PORTS, WORKER_PAGES_VARIABLE


class RankPorts(NamedTuple):
    """The ports that the ranks use.

    Attributes
    ----------
    scheduler, dashboard : int
        Ports on the first node; 0: any.
    worker_options : dict of str to int or str
        The keyword arguments of each nanny that limit its ports and its worker's.
    variables : dict of str to str
        Environment variables that limit MPI's ports, and those of the workers' pages.
    """

    scheduler: int = 0
    dashboard: int = 0
    worker_options: Mapping[str, int | str] = {}
    variables: Mapping[str, str] = {}


def choose_ports(config: Config, sizing: Sizing) -> RankPorts:
    """Choose the ports of the ranks, of which the scheduler's and the dashboard's must be free on this node.

    Raises
    ------
    UsageError
        A port that the user has named is taken, or `--worker-port` has too few.
    """
    named = {"--scheduler-port": config.scheduler_port, "--dashboard-port": config.dashboard_port}
    for option, port in named.items():
        if port and not is_free(port):
            raise UsageError(
                f"{option} {port}: another program listens on it on {host_name()}",
                f"Name another port, or leave {option} out",
            )
    if config.worker_port is None:
        return RankPorts(config.scheduler_port or 0, config.dashboard_port or 0)
    for name, node in sizing.by_node.items():
        check_ports(config.worker_port, node.n_workers, name)
    plan = divide(config.worker_port)
    scheduler, dashboard, *launcher = choose_free(
        plan.others, 2 + LAUNCHER_PORTS, but=filter(None, named.values())
    )
    return RankPorts(
        config.scheduler_port or scheduler,
        config.dashboard_port or dashboard,
        {"port": _dask_ports(plan.nannies), "worker_port": _dask_ports(plan.workers)},
        {
            **port_variables(plan.ranks, launcher),
            WORKER_PAGES_VARIABLE: str(plan.pages.start - plan.nannies.start),
        },
    )


def _dask_ports(ports: range) -> int | str:
    """Return ports as `distributed.Nanny` takes them: it refuses a range of one port."""
    return f"{ports[0]}:{ports[-1]}" if len(ports) > 1 else ports[0]


def port_variables(ports: range, launcher: Sequence[int]) -> dict[str, str]:
    """Return the environment variables that limit the ports on which MPI listens.

    Parameters
    ----------
    ports : range
        The ports of the ranks.
    launcher : sequence of int
        The ports of a launcher that listens on all that it may use.
    """
    places = {
        "low": ports[0],
        "high": ports[-1],
        "count": len(ports),
        "launcher": ",".join(map(str, launcher)),
    }
    return {name: text.format(**places) for name, text in MPI_PORTS.items()}
