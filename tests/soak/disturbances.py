"""One disturbance for minutes, while a job computes: all results must be right, and the job must live.

    python tests/soak/disturbances.py cables|slurmctld|scan [--minutes N] [--seed N]

`cables`: random nodes are cut off for 1 to 30 s each (ten minutes); `slurmctld`: it is stopped (five minutes); `scan`: a
second user scans all ports of all nodes and holds what answers (two minutes). Needs the minicluster.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from disturb import cut_at_random, slurm_settings, stopped
from faults import assert_nothing_remains, boot
from scanners import hold_all, strangers, tell
from slurmcluster import Minicluster, report_sections
from user import User
from workload import Workload

THREE = ("--nodes", "3", "--workers-per-node", "2")


def cables(cluster: Minicluster, workload: Workload, seconds: float, seed: int) -> None:
    print(f"{cut_at_random(cluster, workload, seconds, seed)} cuts")


def slurmctld(cluster: Minicluster, workload: Workload, seconds: float, _seed: int) -> None:
    with stopped(cluster, None, "^slurmctld", "root"):
        workload.goes_on_for(seconds)


def scan(cluster: Minicluster, workload: Workload, seconds: float, _seed: int) -> None:
    with strangers(User(cluster, "second"), (1, 2, 3), each=5) as scans:
        workload.goes_on_for(seconds)
        hold_all(scans)
        tell(scans)


Disturb = Callable[[Minicluster, Workload, float, int], None]
DISTURBANCES: dict[str, tuple[Disturb, float]] = {
    "cables": (cables, 10),
    "slurmctld": (slurmctld, 5),
    "scan": (scan, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("disturbance", choices=DISTURBANCES)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    options = parser.parse_args()
    _, minutes = DISTURBANCES[options.disturbance]
    print(f"seed {options.seed}", flush=True)
    with Minicluster.booted(suffix="soak") as cluster:
        cluster.add_env("env", ["openmpi", "demo", "notebook"])
        try:
            with slurm_settings(cluster, SlurmdTimeout=300):
                run(cluster, options.disturbance, 60 * (options.minutes or minutes), options.seed)
        except BaseException:
            for title, text in report_sections(cluster):
                print(f"--- {title}", text, sep="\n", flush=True)
            raise


def run(cluster: Minicluster, disturbance: str, seconds: float, seed: int) -> None:
    """Disturb a job for so long; fail unless it computed rightly all the time, and stops well."""
    job = boot(User(cluster), *THREE)
    workload = Workload(job, 6, node=1, tolerant=disturbance == "cables")
    DISTURBANCES[disturbance][0](cluster, workload, seconds, seed)
    workload.goes_on(20, timeout_s=90)
    print(workload.ends_well())
    print(dict(Counter(event["event"] for event in job.events())))
    assert job.slurm_state() == "RUNNING", job.events()
    began = time.monotonic()
    job.stop()
    print(f"stopped after {time.monotonic() - began:.1f} s")
    assert job.named("closed")[-1]["exit_status"] == 0
    assert_nothing_remains(job.user)


if __name__ == "__main__":
    main()
