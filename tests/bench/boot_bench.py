"""From sbatch to all workers connected, and to the first result: mpiboot beside what people use now.

    sudo python tests/bench/boot_bench.py [--quick] [--repeats N] [--shared-fs bind,sshfs] [--only NAME,…]

All contenders run in turn, on the same nodes and from the same environment, round after round; ratios are those within a
round. Without root and Slurm's packages, those that need no batch system run on this machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Contender
from figures import median, number, ratio, show, table
from places import Cluster, ThisMachine, cluster, this_machine, why_no_cluster

Place = Cluster | ThisMachine
Runs = dict[str, list[dict[str, Any]]]
PHASES = ("submit", "queue", "stage", "launch", "workers", "connect", "result")
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "bench"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, help="rounds [3; with --quick 1]")
    parser.add_argument("--quick", action="store_true", help="one round of everything")
    parser.add_argument("--shared-fs", default="bind,sshfs", help="file systems of the minicluster")
    parser.add_argument(
        "--only", default="", help="names of contenders, as the table has them, with `;` between"
    )
    parser.add_argument(
        "--cluster", metavar="NAME", help="a minicluster that is up [one is booted, and ended]"
    )
    parser.add_argument("--local", action="store_true", help="on this machine, minicluster or not")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=CACHE / "boot.json")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is taken down
    rounds = options.repeats or (1 if options.quick else 3)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    chosen = [c for c in CONTENDERS if not options.only or c.name in options.only.split(";")]
    results = []
    reason = "--local" if options.local else why_no_cluster()
    if reason:
        print(f"no minicluster ({reason}): on this machine alone", file=sys.stderr)
        with this_machine() as place:
            results.append(bench(place, chosen, rounds, 1, 2))
    else:
        for shared_fs in options.shared_fs.split(","):
            with cluster(shared_fs, options.output.parent, options.cluster) as place:
                found = bench(place, chosen, rounds, options.nodes, 4)
                if not options.only:
                    found["stages"] = [stages(place) for _ in range(rounds)]
                results.append(found)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    for result in results:
        print(report(result), flush=True)
    return 0


def bench(
    place: Place, contenders: Sequence[Contender], rounds: int, nodes: int, workers: int
) -> dict[str, Any]:
    setup = place.setup(nodes, workers, threads=2 if nodes > 1 else 1)
    runs: Runs = {}
    load = []
    for _ in range(rounds):
        load.append(os.getloadavg()[0])
        for contender in contenders:
            if contender.slurm_only and not setup.slurm:
                continue
            if contender.needs == "clean":
                place.clean()
            orders = contender.orders(setup)
            if contender.needs == "staged" and not runs.get("mpiboot, cold"):
                place.probe(CONTENDERS[4].orders(setup))
            found = place.probe(orders)
            place.remove_recipe()
            runs.setdefault(contender.name, []).append(figures(found))
            shown = {k: round(v, 2) for k, v in runs[contender.name][-1].items() if isinstance(v, float)}
            print(f"{place.shared_fs}: {contender.name}: {shown}", file=sys.stderr, flush=True)
    return {
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "shared_fs": place.shared_fs,
        "nodes": nodes,
        "n_workers": setup.n_workers,
        "cpus": os.cpu_count(),
        "load_before": load,
        "runs": runs,
    }


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Seconds from sbatch, of one run; and its phases, as far as they can be told."""
    zero = found["submitted"]
    total = {"workers_s": found["workers"] - zero, "result_s": found["result"] - zero}
    used = {name: found[name] for name in ("cpu_s", "fs_bytes", "fs_requests") if name in found}
    moments: list[tuple[str, float]] = [("submitted", zero)]
    if "events" in found:
        began = {e["phase"]: e["time"] for e in found["events"] if e["event"] == "phase"}
        total["submit_s"] = zero - found["asked"]
        moments += [("queue", began["stage"]), ("stage", began["launch"])]
        moments += [("workers", began["ready"]), ("connect", found["workers"])]
        stagers = [e["seconds"] for e in found["events"] if e["event"] == "staged"]
        used["stager_s"] = max(stagers, default=None)
    else:
        for name, key in (("queue", "mark_script"), ("stage", "mark_stage")):
            if key in found:
                moments.append((name, found[key]))
        moments.append(("workers", found["workers"]))
    moments.append(("result", found["result"]))
    phases = {f"phase_{name}_s": end - start for (_, start), (name, end) in itertools.pairwise(moments)}
    return {**total, **used, **phases}


# ---- the stage alone, on all nodes at once


def stages(place: Cluster) -> dict[str, Any]:
    """`cp` and `tar -zxf` on three nodes at once beside envpack there, and what each transport reads."""
    python, folder = place.env / "bin/python", "/tmp/bench-stage"
    each = [
        "srun",
        "--partition=multiple",
        "--nodes=3",
        "--ntasks=3",
        "--ntasks-per-node=1",
        "--cpus-per-task=8",
    ]
    archive = place.pack_path()
    loop = f"mkdir -p {folder} && cp {place.archive} {folder}/a && tar -zxf {folder}/a -C {folder} && rm {folder}/a"
    found: dict[str, Any] = {"archive_bytes": place.host_path(Path(archive)).stat().st_size}
    for name, argv in (
        ("cp_tar", ["sh", "-c", loop]),
        ("envpack", [python, "-m", "envpack", "stage", archive, "--root", folder, "--json"]),
        ("envpack_warm", [python, "-m", "envpack", "stage", archive, "--root", folder, "--json"]),
    ):
        if name != "envpack_warm":
            place.clean()
        if name == "envpack":
            for k in range(1, place.total_nodes + 1):
                place.cluster.node(k, ["mkdir", folder])
        cpu, files = place.used()
        began = time.monotonic()
        out = place.login([*each, *argv])
        seconds = time.monotonic() - began
        after = place.used()
        found[name] = {"s": seconds, "cpu_s_per_node": (after[0] - cpu) / place.total_nodes}
        if name != "cp_tar":
            found[name]["stager_s"] = [json.loads(line)["seconds"] for line in out.splitlines()]
        if place.shared_fs == "sshfs":
            found[name]["fs_bytes"] = (after[1] - files).sent_bytes
        print(f"{place.shared_fs}: {name}: {found[name]}", file=sys.stderr, flush=True)
    for transport in ("direct", "tree", "sbcast"):
        place.clean()
        setup = place.setup(place.total_nodes, 1, 8)
        orders = CONTENDERS[4].orders(setup)
        orders["options"]["transport"] = transport
        run = place.probe(orders)
        staged = [e for e in run["events"] if e["event"] == "staged"]
        phases = {e["phase"]: e["time"] for e in run["events"] if e["event"] == "phase"}
        found[transport] = {
            "s": phases["launch"] - phases["stage"],
            "stager_s": [e["seconds"] for e in staged],
            "cpu_s_per_node": run["cpu_s"] / place.total_nodes,
            "fs_bytes": run.get("fs_bytes"),
        }
        print(f"{place.shared_fs}: {transport}: {found[transport]}", file=sys.stderr, flush=True)
    return found


# ---- what is printed


def column(runs: Runs, name: str, key: str) -> list[float | None]:
    return [run.get(key) for run in runs.get(name, [])]


def report(result: dict[str, Any]) -> str:
    runs: Runs = result["runs"]
    title = f"## {result['shared_fs']}: {result['nodes']} node(s), {result['n_workers']} workers, {result['cpus']} cores"
    rows = []
    for name in runs:
        faster = ratio(column(runs, name, "workers_s"), column(runs, "recipe", "workers_s"))
        mib = [b / 2**20 if b is not None else None for b in column(runs, name, "fs_bytes")]
        rows.append(
            [
                name,
                show(column(runs, name, "workers_s")),
                show(column(runs, name, "result_s")),
                f"{faster:.2f}" if faster else "-",
                show(column(runs, name, "cpu_s")),
                show(mib),
                show(column(runs, name, "fs_requests")),
            ]
        )
    columns = ["", "workers, s", "result, s", "times recipe", "CPU s", "read MiB", "requests"]
    parts = [title, "", table(columns, rows), "", phases_table(runs), "", *targets(result)]
    if "stages" in result:
        parts += ["", stages_table(result["stages"])]
    return "\n".join(parts) + "\n"


def phases_table(runs: Runs) -> str:
    names = [p for p in PHASES if any(f"phase_{p}_s" in run for found in runs.values() for run in found)]
    rows = [[who, *(show(column(runs, who, f"phase_{p}_s")) for p in names)] for who in runs]
    return table(["phase, s", *names], rows)


def targets(result: dict[str, Any]) -> list[str]:
    """Each target, and what was reached."""
    runs: Runs = result["runs"]

    def workers(name: str) -> list[float | None]:
        return column(runs, name, "workers_s")

    lines = []

    def line(text: str, reached: float | None, unit: str = "") -> None:
        if reached is not None:
            lines.append(f"- {text}: {number(reached)}{unit}")

    cold = workers("mpiboot, cold")
    line("cold, times faster than the recipe (at least 1.5; sshfs 2)", ratio(cold, workers("recipe")))
    line("cold, times faster than unstaged dask-mpi (sshfs: at least 3)", ratio(cold, workers("unstaged")))
    for name in ("limit", "limit, nannies"):
        slower = ratio(workers(name), workers("mpiboot, warm"))
        line(f"warm, times the {name} (at most 1.15)", slower)
        stage = column(runs, "mpiboot, cold", "stager_s")
        own = [
            whole - staged - least
            for whole, staged, least in zip(cold, stage, workers(name), strict=False)
            if whole and staged and least
        ]
        line(f"own overhead: cold, minus stage, minus the {name} (under 1)", median(own), " s")
    return lines


def stages_table(found: list[dict[str, Any]]) -> str:
    def values(name: str, key: str) -> list[float | None]:
        return [one[name].get(key) for one in found]

    rows = []
    for name in ("cp_tar", "envpack", "envpack_warm", "direct", "tree", "sbcast"):
        faster = ratio(values(name, "s"), values("cp_tar", "s")) if name.startswith("envpack") else None
        slowest = [max(one[name]["stager_s"]) if one[name].get("stager_s") else None for one in found]
        sent = [
            one[name]["fs_bytes"] / one["archive_bytes"] if one[name].get("fs_bytes") else None
            for one in found
        ]
        rows.append(
            [
                name,
                show(values(name, "s")),
                f"{faster:.2f}" if faster else "-",
                show(slowest),
                show(values(name, "cpu_s_per_node")),
                show(sent),
            ]
        )
    columns = [
        "3 nodes at once",
        "s",
        "times cp+tar",
        "slowest stager, s",
        "CPU s/node",
        "read from server, archives",
    ]
    return table(columns, rows)


if __name__ == "__main__":
    sys.exit(main())
