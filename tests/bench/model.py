"""A model of the start on many nodes, made of parts that the bench has measured and of some that are assumed.

    python tests/bench/model.py [--boot .cache/bench/boot.json] [--scale .cache/bench/scale.json]

Seconds until all workers are connected, after the batch system has started the job:

    agents     boot's Python, srun's start, and one small Python on every node from the shared file system
    stage      direct: the slowest of a node's unpacking, the file server's bandwidth shared by all, and a node's link
               sbcast: the first node sends to at most FANOUT others, block by block down a tree; unpacking comes after
               tree: the slowest of unpacking, one reader, a link that carries the archive FAN_OUT times, and an agent
               that receives it and passes it on, since parts travel on while they are unpacked; and a part's way down
    launch     mpirun, with a daemon more for each doubling of the nodes
    import     each worker's own start from the node's disk; the nodes do it at the same time
    connect    one scheduler takes in so many workers a second

Without staging, `import` is that of every worker's files through the one file server.

Assumed: nodes alike, nobody else on file server and network; requests of N nodes cost the server N times as many as
one's; a server's bandwidth and request rate do not fall under load (real ones do); the scheduler's rate is that of this
machine, on which it shares the cores with the workers that connect.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from figures import median, number, table

TRANSPORTS = ("direct", "tree", "sbcast", "no staging")
FANOUT = 50  # slurm.conf(5), TreeWidth; sbcast
BLOCK_BYTES = 8 * 1024**2  # sbcast(1)
PART_BYTES = 1024**2  # mpiboot.agent.archive_copy
TREE_FAN_OUT = 2  # mpiboot.agent.tree
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "bench"


@dataclass(frozen=True)
class Parts:
    """What the model is made of. The first group is measured by the bench; the second describes a site."""

    archive_bytes: float = 250e6
    unpack_s: float = 1.5  # a node's stager, its bytes at hand
    boot_requests: float = 3100  # of boot's own start and the agents' program, on the first node alone
    agent_requests: float = 390  # of one node's agent, as agent_start.py counts them on sshfs
    agent_bytes_per_s: float = 250e6  # an agent that sends to two others, on one core
    import_requests: float = 40_000  # of one node's workers, unstaged
    srun_s: float = 0.3
    mpirun_s: float = 0.5
    mpirun_per_doubling_s: float = 0.05  # assumed
    import_s: float = 3.0
    workers_per_s: float = 100.0

    workers_per_node: int = 4
    fs_bytes_per_s: float = 10e9
    fs_requests_per_s: float = 100_000
    link_bytes_per_s: float = 1.2e9  # 10 Gbit/s


def start_s(nodes: int, transport: str, parts: Parts) -> dict[str, float]:
    """Return the seconds of each part of a start on `nodes` nodes; their sum is the time to all workers."""
    p = parts
    doublings = math.log2(max(nodes, 1))
    mpirun_s = p.mpirun_s + p.mpirun_per_doubling_s * doublings
    server_s = nodes * p.archive_bytes / p.fs_bytes_per_s
    alone_s = p.archive_bytes / min(p.link_bytes_per_s, p.fs_bytes_per_s)
    found = {
        "agents": p.srun_s + (p.boot_requests + nodes * p.agent_requests) / p.fs_requests_per_s,
        "stage": 0.0,
        "launch": mpirun_s,
        "import": p.import_s,
        "connect": nodes * p.workers_per_node / p.workers_per_s,
    }
    if transport == "direct":
        found["stage"] = max(p.unpack_s, server_s, alone_s)
    elif transport == "sbcast":
        depth = math.ceil(math.log(nodes + 1, FANOUT + 1)) if nodes else 0
        sent_s = min(nodes, FANOUT) * p.archive_bytes / p.link_bytes_per_s
        found["stage"] = sent_s + depth * BLOCK_BYTES / p.link_bytes_per_s + p.unpack_s
    elif transport == "tree":
        sent_s = min(nodes - 1, TREE_FAN_OUT) * p.archive_bytes / p.link_bytes_per_s
        agent_s = p.archive_bytes / p.agent_bytes_per_s
        way_s = math.floor(doublings) * PART_BYTES / p.agent_bytes_per_s
        found["stage"] = max(p.unpack_s, alone_s, sent_s, agent_s) + way_s
    elif transport == "no staging":
        found["agents"] = 0.0
        found["import"] = p.import_s + nodes * p.import_requests / p.fs_requests_per_s
    else:
        raise ValueError(f"{transport!r} is none of {', '.join(TRANSPORTS)}")
    return found


def measured(boot: Sequence[dict[str, Any]], scale: Sequence[dict[str, Any]], parts: Parts) -> Parts:
    """Return `parts` with all in it that the bench has measured."""

    def runs(shared_fs: str, name: str, key: str) -> list[float | None]:
        found = [place for place in boot if place["shared_fs"] == shared_fs]
        return [run.get(key) for run in found[0]["runs"].get(name, [])] if found else []

    def per_node(name: str) -> float | None:
        total = median(runs("sshfs", name, "fs_requests"))
        nodes = next((place["nodes"] for place in boot if place["shared_fs"] == "sshfs"), 1)
        return total / nodes if total else None

    warm, nodes = per_node("mpiboot, warm"), next((p["nodes"] for p in boot if p["shared_fs"] == "sshfs"), 1)
    started = max(0.0, warm - parts.agent_requests) * nodes if warm else None
    sizes = [stage["archive_bytes"] for place in boot for stage in place.get("stages", [])]
    found = {
        "archive_bytes": median(sizes),
        "unpack_s": median(runs("bind", "mpiboot, cold", "stager_s")),
        "boot_requests": started,
        "import_requests": per_node("unstaged"),
        "import_s": median(runs("bind", "limit, nannies", "phase_workers_s")),
        "workers_per_s": median([one["count"] / one["connected_s"] for one in scale]),
    }
    return replace(parts, **{name: value for name, value in found.items() if value})


def report(parts: Parts, counts: Sequence[int] = (10, 100, 1000)) -> str:
    """Return the table: a row per transport, its parts for the largest number of nodes."""
    rows = []
    for transport in TRANSPORTS:
        totals = [number(sum(start_s(nodes, transport, parts).values())) for nodes in counts]
        last = start_s(counts[-1], transport, parts)
        rows.append([transport, *totals, ", ".join(f"{name} {number(s)}" for name, s in last.items())])
    return table(["", *(f"{nodes} nodes, s" for nodes in counts), f"of which, {counts[-1]} nodes"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boot", type=Path, default=CACHE / "boot.json")
    parser.add_argument("--scale", type=Path, default=CACHE / "scale.json")
    options = parser.parse_args(argv)
    boot, scale = (
        json.loads(path.read_text()) if path.exists() else [] for path in (options.boot, options.scale)
    )
    parts = measured(boot, scale, Parts())
    for name, site in (
        ("a parallel file system: 10 GB/s, 100,000 requests/s", parts),
        (
            "one NFS server: 1 GB/s, 10,000 requests/s",
            replace(parts, fs_bytes_per_s=1e9, fs_requests_per_s=1e4),
        ),
    ):
        print(f"{name}\n\n{report(site)}\n")
    print("\n".join(f"{name} = {number(value)}" for name, value in vars(parts).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
