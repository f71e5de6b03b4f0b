"""Hundreds of light workers against a scheduler that mpiboot started on this machine, and as many agents against boot.

    python tests/bench/scale_bench.py [--quick] [--counts 500,1000]

The workers are real, but many share a process and all share this machine's cores with the scheduler; times are
therefore upper bounds, memory and descriptors are not. The same holds for the agents, which prepare and stage nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import number, table

CROWD = Path(__file__).with_name("crowd.py")
AGENTS = Path(__file__).with_name("agents_boot.py")
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "bench"
PER_PROCESS = 250
TIMEOUT_S = 300.0
TASKS_EACH = 10
# A worker looks at itself 100 times a second; hundreds in one process would do nothing else.
QUIET = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "60s",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "10s",
}
STRANGERS = 200
AGENTS_IDLE_S = 10.0
SOFT_LIMIT = 1024  # what a login shell commonly has; the scheduler must come by more


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", default="500,1000")
    parser.add_argument("--quick", action="store_true", help="200 workers")
    parser.add_argument("--output", type=Path, default=CACHE / "scale.json")
    parser.add_argument("--agents-output", type=Path, default=CACHE / "agents.json")
    options = parser.parse_args(argv)
    counts = [200] if options.quick else [int(word) for word in options.counts.split(",")]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the job is stopped
    of_agents = [measure_agents(count, strangers) for count in counts for strangers in (0, STRANGERS)]
    options.agents_output.write_text(json.dumps(of_agents, indent=1) + "\n")
    print(f"{report_agents(of_agents)}\n", flush=True)
    found = [measure(count) for count in counts]
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(report(found))
    return 0


def measure(count: int) -> dict[str, Any]:
    import mpiboot

    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        os.environ["MPIBOOT_HOME"] = f"{home}/home"
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(SOFT_LIMIT, hard), hard))
        job = mpiboot.submit(
            batch_system="local", workers_per_node=1, cpus_per_worker=1, no_stage=True, mem=2**30
        )
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        client = mpiboot.connect(job, progress=lambda text: None)
        try:
            return crowd(client, job.directory.path, count)
        finally:
            client.shutdown()
            job.stop()


def measure_agents(count: int, strangers: int) -> dict[str, Any]:
    """Let many agents dial boot, answer two orders, lose their connections once, and end."""
    argv = [str(count), "--strangers", str(strangers), "--cut", "--idle-s", str(AGENTS_IDLE_S)]
    output = subprocess.check_output([sys.executable, str(AGENTS), *argv], stdin=subprocess.DEVNULL)
    figures: dict[str, Any] = json.loads(output)
    return figures


def crowd(client: Any, directory: Path, count: int) -> dict[str, Any]:
    from mpiboot.protocol.secrets import dask_tls_environment

    first = set(client.scheduler_info(n_workers=-1)["workers"])
    before = client.run_on_scheduler(usage)
    sizes = [min(PER_PROCESS, count - k) for k in range(0, count, PER_PROCESS)]
    crowds = [
        subprocess.Popen(
            [sys.executable, str(CROWD), client.scheduler.address, str(size), f"crowd{k}"],
            env={**os.environ, **QUIET, **dask_tls_environment(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for k, size in enumerate(sizes)
    ]
    try:
        for process in crowds:
            assert process.stdout and process.stdout.readline().strip() == "ready"
        began = time.monotonic()
        for process in crowds:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        deadline = began + TIMEOUT_S
        while client.run_on_scheduler(workers_there) < count + len(first):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{client.run_on_scheduler(workers_there)} of {count} workers")
            time.sleep(0.1)
        connected_s = time.monotonic() - began
        after = client.run_on_scheduler(usage)
        first_map_s = per_task_s(client, count) * count
        steady_s = per_task_s(client, TASKS_EACH * count)
        loaded = client.run_on_scheduler(usage)
        return {
            "count": count,
            "connected_s": connected_s,
            "descriptors": after["descriptors"],
            "descriptor_limit": after["limit"],
            "memory_bytes": after["memory_bytes"],
            "memory_before_bytes": before["memory_bytes"],
            "memory_after_tasks_bytes": loaded["memory_bytes"],
            "first_map_s": first_map_s,
            "per_task_s": steady_s,
            "load": os.getloadavg()[0],
        }
    finally:
        for process in crowds:
            process.terminate()
        for process in crowds:
            process.wait(30)


def per_task_s(client: Any, n: int) -> float:
    """Seconds per trivial task, submitted and gathered."""
    began = time.monotonic()
    total = sum(client.gather(client.map(abs, range(n), pure=False)))
    assert total == n * (n - 1) // 2
    return (time.monotonic() - began) / n


def usage() -> dict[str, int]:
    import resource

    import psutil

    process = psutil.Process()
    return {
        "memory_bytes": process.memory_info().rss,
        "descriptors": process.num_fds(),
        "limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def workers_there(dask_scheduler: Any) -> int:
    return len(dask_scheduler.workers)


def report(found: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            str(one["count"]),
            number(one["connected_s"]),
            f"{number(one['count'] / one['connected_s'])}",
            f"{one['memory_before_bytes'] / 2**20:.0f} -> {one['memory_bytes'] / 2**20:.0f}",
            f"{one['descriptors']} of {one['descriptor_limit']}",
            number(one["first_map_s"]),
            number(one["per_task_s"] * 1e3),
        ]
        for one in found
    ]
    columns = [
        "light workers",
        "all connected, s",
        "workers/s",
        "scheduler, MiB",
        "open files",
        "a task each, s",
        "then ms/task",
    ]
    return table(columns, rows)


def report_agents(found: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            f"{one['count']}, {one['strangers']}",
            number(one["reports_s"]),
            number(one["answered_s"]),
            number(one["cpu_s"]),
            number(one["idle_cpu_share"] * 100),
            f"{number(one['back_s'])}, {number(one['back_cpu_s'])}",
            f"{number(one['close_s'])}, {number(one['close_cpu_s'])}",
            f"{one['memory_before_bytes'] / 2**20:.0f} -> {one['memory_max_bytes'] / 2**20:.0f}",
            f"{one['descriptors_max']} of {one['descriptor_limit']}",
        ]
        for one in found
    ]
    columns = [
        "agents, strangers",
        "all connected, s",
        "all answered, s",
        "boot's CPU s",
        "idle, % CPU",
        "cut: all back, s, CPU s",
        "end, s, CPU s",
        "boot, MiB",
        "open files",
    ]
    return table(columns, rows)


if __name__ == "__main__":
    sys.exit(main())
