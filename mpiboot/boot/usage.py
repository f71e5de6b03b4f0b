"""Says what a job was given, what its workers use of it, and why anything is left: a line for each kind of node.

Only boot imports this module. Pure functions.
"""

from collections.abc import Mapping

from mpiboot.batch.allocation import Allocation, Node
from mpiboot.batch.sizing import NodeWorkers, Sizing, reserved_bytes
from mpiboot.common.names import show_names
from mpiboot.common.units import show_size
from mpiboot.protocol.channel_messages import NodeReport


def usage_lines(
    allocation: Allocation,
    sizing: Sizing,
    reports: Mapping[str, NodeReport],
    usable_bytes: Mapping[str, int],
    stage_bytes: Mapping[str, int],
) -> list[str]:
    """Return a line for each kind of node, such as

    `node[1-2]: given 8 CPUs (4 cores of 2 threads), 16 GiB, 2 gpu; used by 2 workers of 4 threads, 7.2 GiB each;
    left: 1.6 GiB for the scheduler, nannies and page cache, 2 gpu (workers are not given devices)`.

    Parameters
    ----------
    allocation : Allocation
        The job's nodes.
    sizing : Sizing
        The workers of each node.
    reports : mapping of str to NodeReport
        The nodes' reports.
    usable_bytes : mapping of str to int
        Memory that the job may use on each node.
    stage_bytes : mapping of str to int
        Size of the staged environment on the nodes where it lies in memory.
    """
    nodes_of: dict[str, list[str]] = {}
    for node in allocation.nodes:
        workers, report, name = sizing.by_node[node.name], reports[node.name], node.name
        left = [
            *cpus_left(node, workers, report),
            *memory_left(node, report, usable_bytes[name], stage_bytes.get(name, 0)),
        ]
        if node.devices:
            left.append(f"{node.devices} (workers are not given devices)")
        text = f"given {given(node, report)}; used by {used(workers)}; left: {', '.join(left)}"
        nodes_of.setdefault(text, []).append(name)
    return [f"{show_names(names)}: {text}" for text, names in nodes_of.items()]


def given(node: Node, report: NodeReport) -> str:
    """Return what the job was given on a node, with the whole node's figures where it was given a part."""
    cpus = node.given_cpus or node.cpus
    total = f" of {node.total_cpus}" if node.total_cpus not in (None, cpus) else ""
    threads = node.threads_per_core
    cores = f" ({count(cpus // threads, 'core')} of {threads} threads)" if threads > 1 else ""
    if node.memory_bytes is None:
        memory = f"no part of the host's {show_size(report.memory_bytes)} in particular"
    else:
        whole = node.total_memory_bytes
        memory = show_size(node.memory_bytes) + (
            f" of {show_size(whole)}" if whole and whole > node.memory_bytes else ""
        )
    return ", ".join(filter(None, [f"{cpus}{total} CPUs{cores}", memory, node.devices]))


def used(workers: NodeWorkers) -> str:
    """Return what the workers of a node use."""
    return (
        f"{count(workers.n_workers, 'worker')} of {count(workers.threads_per_worker, 'thread')}, "
        f"{show_size(workers.memory_limit_bytes)}{' each' if workers.n_workers > 1 else ''}"
    )


def cpus_left(node: Node, workers: NodeWorkers, report: NodeReport) -> list[str]:
    """Return which of a node's CPUs the workers do not use, and why."""
    allowed = min(node.cpus, report.allowed_cpus or node.cpus)
    parts = {
        "the job asked for fewer threads per core": (node.given_cpus or node.cpus) - node.cpus,
        f"its control group or CPU affinity allows the job {allowed}": node.cpus - allowed,
        "fewer than another worker needs, or not asked for": allowed
        - workers.n_workers * workers.threads_per_worker,
    }
    return [f"{count(number, 'CPU')} ({why})" for why, number in parts.items() if number > 0]


def memory_left(node: Node, report: NodeReport, usable_bytes: int, stage_bytes: int) -> list[str]:
    """Return which part of a node's memory the workers do not use, and why."""
    parts = [
        f"{show_size(reserved_bytes(usable_bytes - stage_bytes))} for the scheduler, nannies and page cache"
    ]
    if stage_bytes:
        parts.append(f"{show_size(stage_bytes)} for the staged environment, which lies in memory")
    if report.memory_limit_bytes and report.memory_limit_bytes == usable_bytes < (node.memory_bytes or 0):
        kept = show_size((node.memory_bytes or 0) - usable_bytes)
        parts.append(f"{kept} (its control group allows the job {show_size(usable_bytes)})")
    if node.memory_bytes and node.total_memory_bytes and node.total_cpus == (node.given_cpus or node.cpus):
        unasked = node.total_memory_bytes - node.memory_bytes
        if unasked > node.total_memory_bytes // 20:
            parts.append(
                f"{show_size(unasked)} of the whole node that the job did not ask for (--mem 0 does)"
            )
    return parts


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
