"""Steps of a boot before the ranks start: records, the choice of the network interface, secrets, and worker sizes.

Only boot imports this module.
"""

import contextlib
import logging
import os
import stat
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from mpiboot.batch.allocation import Node
from mpiboot.batch.sizing import Sizing, check_min_workers, size_workers
from mpiboot.boot.agents import Agents
from mpiboot.boot.certificates import make_job_secrets
from mpiboot.boot.choose_interface import choose_interface, common_interfaces
from mpiboot.boot.context import Context, Network, Staged
from mpiboot.boot.usage import usage_lines
from mpiboot.common.interfaces import Interface, interfaces
from mpiboot.common.names import show_names
from mpiboot.common.trust import remove_files
from mpiboot.config import Config
from mpiboot.protocol.channel_messages import NodeReport
from mpiboot.protocol.job_directory import write_atomic
from mpiboot.protocol.prefix_checks import active_prefix

logger = logging.getLogger(__name__)

STDOUT = 1
VALID_WITHOUT_WALLTIME_S = 30 * 86400.0


def log_to(path: Path) -> None:
    """Write boot's log messages to the file `path`, in addition to the job's output."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    handler = logging.StreamHandler(os.fdopen(descriptor, "a", errors="backslashreplace"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)


def source_prefix(config: Config) -> Path:
    """Return the prefix of `--env`, or of the active environment.

    Raises
    ------
    EnvironmentUnfitError
        No environment is active.
    """
    prefix = Path(config.env) if config.env else active_prefix()
    return Path(os.path.abspath(prefix))  # noqa: PTH100 - a link in it is the user's name for it


def record(context: Context) -> None:
    """Write `job.json` and the first event."""
    allocation, config = context.allocation, context.config
    # Values of variables are left out: they may be secrets.
    options = {**asdict(config), "env_var": [item.partition("=")[0] for item in config.env_var]}
    write_atomic(
        context.directory.job,
        {"asked": options, "allocation": asdict(allocation), "python": sys.executable, "pid": os.getpid()},
    )
    logger.info(
        "job %s: %d node(s), %s; restart %d",
        allocation.job_id,
        len(allocation.nodes),
        show_names(allocation.node_names),
        allocation.restart_count,
    )
    context.events.phase(
        "stage",
        restart_count=allocation.restart_count,
        nodes=list(allocation.node_names),
        output=output_file(STDOUT),
    )


def output_file(descriptor: int) -> str | None:
    """Return the path of the regular file that is open as `descriptor`; None if none is."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - a text for JSON
    return None


def choose_network(context: Context, agents: Agents, reports: Mapping[str, NodeReport]) -> Network:
    """Choose the interface that all ranks use: one that all nodes have, or the loopback of a job on one host.

    Then send the agents each other's addresses on this interface.

    Raises
    ------
    UsageError
        There is no such interface, or a node lacks the one of `--interface`.
    """
    wanted = context.config.interface
    if wanted == "auto" and not context.system.several_hosts:
        wanted = "lo"
    of_nodes = {node: report.interfaces for node, report in reports.items()}
    unusable = {node: report.unusable_interfaces for node, report in reports.items()}
    interface = choose_interface(wanted, of_nodes, unusable, context.config.client_networks)
    names = {node: name_there(interface, of_node) for node, of_node in of_nodes.items()}
    addresses = {node: of_node[names[node]]["address"] for node, of_node in of_nodes.items()}
    agents.introduce({node: [address, reports[node].port] for node, address in addresses.items()})
    first = next(iter(of_nodes.values()))
    return Network(
        interface,
        {address: node for node, address in addresses.items()},
        {
            interface: next(iter(addresses.values())),
            **{name: first[name]["address"] for name in common_interfaces(of_nodes)},
        },
        names,
    )


def name_there(interface: str, of_node: Mapping[str, Interface]) -> str:
    """Return the name of an interface on a node: of the one in a network, if `interface` is a network."""
    if interface in of_node:
        return interface
    return next(name for name, each in of_node.items() if each["network"] == interface)


def make_secrets(context: Context) -> None:
    """Make the job's TLS files and token. Agents need the files before they start, even with `--insecure`.

    Raises
    ------
    SecurityError
        The job's directory cannot be trusted.
    """
    if context.config.insecure:
        logger.warning("--insecure: anyone who reaches these nodes can run code as you")
    remove_files(context.directory.tls)  # those of the same job before its requeue
    end_time = context.allocation.end_time
    remaining_s = end_time - time.time() if end_time else VALID_WITHOUT_WALLTIME_S
    make_job_secrets(
        context.directory.path,
        valid_for_s=max(remaining_s, 60.0),
        host_names=[context.allocation.nodes[0].name],
        addresses=[interface["address"] for interface in interfaces().values()],
    )


def size(context: Context, reports: Mapping[str, NodeReport], staged: Staged) -> Sizing:
    """The workers of each node and their limits, from the allocation and the nodes' reports.

    Raises
    ------
    UsageError
        The user's numbers exceed a node's CPUs or memory, or `--min-workers` exceeds the number of workers.
    """
    config, allocation = context.config, context.allocation
    usable = {node.name: usable_memory(node, reports[node.name], config.mem) for node in allocation.nodes}
    stage_bytes = {
        name: staged.size_bytes.get(name, 0) for name, report in reports.items() if report.root_is_memory
    }
    allowed_cpus = {name: report.allowed_cpus for name, report in reports.items() if report.allowed_cpus}
    sizing = size_workers(
        allocation, usable, config.workers_per_node, config.cpus_per_worker, stage_bytes, allowed_cpus
    )
    check_min_workers(config.min_workers, sizing.n_workers)
    for line in usage_lines(allocation, sizing, reports, usable, stage_bytes):
        logger.info("%s", line)
    return sizing


def usable_memory(node: Node, report: NodeReport, asked_bytes: int | None) -> int:
    """Return how much of a node's memory the job may use.

    Parameters
    ----------
    node : Node
        The job's part of the node.
    report : NodeReport
        Describes the node, and what the kernel allows there.
    asked_bytes : int or None
        The user's `--mem`, which counts where the batch system sets no limit; without both, the job has the same share of
        the host's memory as of its CPUs.
    """
    share = min(1.0, node.cpus / report.cpus)
    limit = node.memory_bytes or asked_bytes or int(report.memory_bytes * share)
    return min(limit, report.memory_limit_bytes or limit)
