from dataclasses import replace

import pytest

from mpiboot.batch.allocation import Allocation, Node
from mpiboot.batch.sizing import GIB, size_workers
from mpiboot.boot.usage import usage_lines
from mpiboot.protocol.channel_messages import NodeReport

WHOLE = Node(
    "node1",
    8,
    16 * GIB,
    given_cpus=8,
    threads_per_core=2,
    devices="2 gpu",
    total_cpus=8,
    total_memory_bytes=16 * GIB,
)
REPORT = NodeReport(0, {}, 20 * GIB, 8, root_is_memory=False, has_stage=False, port=7)


def lines(*nodes, stage_bytes=0, workers=None, cpus=None, **report):
    allocation = Allocation("slurm", "7", "k", nodes)
    reports = dict.fromkeys(allocation.node_names, replace(REPORT, **report))
    stage = dict.fromkeys(allocation.node_names, stage_bytes)
    limit = report.get("memory_limit_bytes")
    usable = {node.name: min(node.memory_bytes or 10 * GIB, limit or 99 * GIB) for node in nodes}
    allowed = dict.fromkeys(allocation.node_names, report.get("allowed_cpus") or 99)
    sizing = size_workers(allocation, usable, workers, cpus, stage, allowed)
    return usage_lines(allocation, sizing, reports, usable, stage)


DEVICES = "2 gpu (workers are not given devices)"
RESERVED = "1.6 GiB for the scheduler, nannies and page cache"


def test_a_line_for_each_kind_of_node():
    small = replace(WHOLE, name="node3", cpus=4, given_cpus=4, total_cpus=4, devices="")
    assert lines(WHOLE, replace(WHOLE, name="node2"), small, replace(WHOLE, name="node4")) == [
        "node[1-2,4]: given 8 CPUs (4 cores of 2 threads), 16 GiB, 2 gpu; used by 2 workers of 4 threads, "
        f"7.2 GiB each; left: {RESERVED}, {DEVICES}",
        "node3: given 4 CPUs (2 cores of 2 threads), 16 GiB; used by 1 worker of 4 threads, 14.4 GiB; "
        f"left: {RESERVED}",
    ]


@pytest.mark.parametrize(
    ("node", "more", "line"),
    [
        (
            Node("n1", 2, 2 * GIB, total_cpus=8, total_memory_bytes=16 * GIB),
            {},
            "n1: given 2 of 8 CPUs, 2 GiB of 16 GiB; used by 1 worker of 2 threads, 1.8 GiB; "
            "left: 205 MiB for the scheduler, nannies and page cache",
        ),
        (
            Node("n1", 8, 4 * GIB, total_cpus=8, total_memory_bytes=16 * GIB),
            {},
            "n1: given 8 CPUs, 4 GiB of 16 GiB; used by 2 workers of 4 threads, 1.8 GiB each; "
            "left: 410 MiB for the scheduler, nannies and page cache, "
            "12 GiB of the whole node that the job did not ask for (--mem 0 does)",
        ),
        (
            replace(WHOLE, cpus=4, devices=""),
            {},
            "node1: given 8 CPUs (4 cores of 2 threads), 16 GiB; used by 1 worker of 4 threads, 14.4 GiB; "
            f"left: 4 CPUs (the job asked for fewer threads per core), {RESERVED}",
        ),
        (
            Node("n1", 9, 16 * GIB),
            {"cpus": 4},
            "n1: given 9 CPUs, 16 GiB; used by 2 workers of 4 threads, 7.2 GiB each; "
            f"left: 1 CPU (fewer than another worker needs, or not asked for), {RESERVED}",
        ),
        (
            Node("n1", 8, 16 * GIB),
            {"allowed_cpus": 2, "memory_limit_bytes": 4 * GIB},
            "n1: given 8 CPUs, 16 GiB; used by 1 worker of 2 threads, 3.6 GiB; "
            "left: 6 CPUs (its control group or CPU affinity allows the job 2), "
            "410 MiB for the scheduler, nannies and page cache, 12 GiB (its control group allows the job 4 GiB)",
        ),
        (
            Node("n1", 4),
            {"stage_bytes": GIB},
            "n1: given 4 CPUs, no part of the host's 20 GiB in particular; used by 1 worker of 4 threads, 8.1 GiB; "
            "left: 922 MiB for the scheduler, nannies and page cache, "
            "1 GiB for the staged environment, which lies in memory",
        ),
    ],
)
def test_why_something_is_left(node, more, line):
    assert lines(node, **more) == [line]
