"""Measure boot's end of the channel with many agents: `python agents_boot.py COUNT [--strangers N] [--cut] [--idle-s S]`.

The agents run in other processes, so that this one's CPU time, memory and open files are those of boot's end alone.
Prints one JSON object, with times in seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SUPPORT = Path(__file__).resolve().parents[1] / "support"
CROWD, HOLDER = SUPPORT / "agentcrowd.py", SUPPORT / "holder.py"
SOFT_LIMIT = 1024  # the usual limit of open files in a login shell; boot must raise it
PER_PROCESS = 500
TIMEOUT_S = 300.0
REASON = "done"


def main() -> int:
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument(
        "--strangers", type=int, default=0, help="connections that a stranger holds meanwhile"
    )
    parser.add_argument("--cut", action="store_true", help="cut all connections once")
    parser.add_argument("--idle-s", type=float, default=0.0, help="how long to exchange heartbeats only")
    parser.add_argument("--profile", help="write a profile of the event loop's thread to this file")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(SOFT_LIMIT, hard), hard))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        print(json.dumps(measure(options, Path(folder))))
    return 0


def usage() -> dict[str, Any]:
    """Return this process's CPU time, memory and open files so far."""
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_s": spent.ru_utime + spent.ru_stime,
        "memory_bytes": int(fields[0]) * 1024,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from mpiboot.boot import agents as boot_agents
    from mpiboot.boot.certificates import make_job_secrets
    from mpiboot.boot.channel import Channel
    from mpiboot.protocol.channel_messages import Orders, StageOrder
    from mpiboot.protocol.job_directory import JobDirectory

    if options.profile:
        import cProfile

        profile, run = cProfile.Profile(), Channel._run
        Channel._run = lambda self: profile.runcall(run, self)  # type: ignore[method-assign]
    folder.chmod(0o700)
    make_job_secrets(folder, valid_for_s=3600.0)
    directory = JobDirectory(folder)
    directory.ranks_log.touch()
    names = [f"node-{k}" for k in range(options.count)]
    crowds = [
        f"{sys.executable} {CROWD} {folder} {first} {min(PER_PROCESS, options.count - first)} &"
        for first in range(0, options.count, PER_PROCESS)
    ]
    events: list[str] = []
    context: Any = SimpleNamespace(
        config=SimpleNamespace(interface="auto"),
        allocation=SimpleNamespace(node_names=names),
        directory=directory,
        events=SimpleNamespace(write=lambda event, **_: events.append(event)),
        job_environment=dict,
        system=SimpleNamespace(
            several_hosts=False,
            node_variable=None,
            on_every_node=lambda *_: ["sh", "-c", "trap '' USR2; " + " ".join(crowds) + " wait"],
        ),
    )
    orders = Orders(
        number=0,
        first_node=names[0],
        n_nodes=len(names),
        root="/tmp/mpiboot-alice",
        job_key="slurm-cluster-1234",
        threads=8,
        prefix="/tmp/mpiboot-alice/0123456789abcdef",
        pack_id="0123456789abcdef",
        cancel_command=["scancel", "1234"],
    )
    figures: dict[str, Any] = {"count": options.count, "strangers": options.strangers, "cut": options.cut}
    before = usage()
    figures["memory_before_bytes"] = before["memory_bytes"]
    began = time.monotonic()
    agents = boot_agents.Agents(context, orders)
    stranger = None
    if options.strangers:
        stranger = subprocess.Popen(
            [
                *(sys.executable, str(HOLDER), f"127.0.0.1:{agents._channel.port}", "--again"),
                *("--connections", str(options.strangers // 2), "--mode", "silent", "--mode", "hello"),
                *("--seconds", "600"),
            ],
            stdout=subprocess.DEVNULL,
        )
    try:
        reports = agents.reports()
        figures["reports_s"], figures["reports_cpu_s"] = (
            time.monotonic() - began,
            usage()["cpu_s"] - before["cpu_s"],
        )
        agents.introduce({name: [f"10.0.{k // 250}.{k % 250}", 40_000] for k, name in enumerate(reports)})
        stages = agents.stage(StageOrder(1, "/scratch/alice/archive", "tree", tree=names), TIMEOUT_S)
        assert len(stages) == options.count
        now = usage()
        figures |= now | {"answered_s": time.monotonic() - began, "cpu_s": now["cpu_s"] - before["cpu_s"]}
        figures["descriptors_max"] = now["descriptors"]
        figures["descriptor_limit"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if options.idle_s:
            time.sleep(options.idle_s)
            figures["idle_cpu_share"] = (usage()["cpu_s"] - now["cpu_s"]) / options.idle_s
        if options.cut:
            now, cut_at = usage(), time.monotonic()
            os.killpg(agents.process.pid, signal.SIGUSR2)
            while events.count("agent-back") != options.count:
                agents.note_changes()
                if time.monotonic() - cut_at > TIMEOUT_S:
                    raise TimeoutError(f"{events.count('agent-back')} of {options.count} are back")
                time.sleep(0.05)
            figures["back_s"] = time.monotonic() - cut_at
            figures["back_cpu_s"] = usage()["cpu_s"] - now["cpu_s"]
            figures["descriptors_max"] = max(now["descriptors"], usage()["descriptors"])
        now, closed_at = usage(), time.monotonic()
    finally:
        agents.close(REASON, 60.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(agents.process.pid, signal.SIGKILL)
        if stranger:
            stranger.kill()
            stranger.wait()
    figures["close_s"], figures["close_cpu_s"] = time.monotonic() - closed_at, usage()["cpu_s"] - now["cpu_s"]
    figures["close_status"] = agents.process.returncode
    figures["memory_max_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures["lost"] = events.count("lost-agent")
    log = directory.ranks_log.read_text()
    if "ended" in log:
        print(log[-2000:], file=sys.stderr)
    if options.profile:
        profile.dump_stats(options.profile)
    return figures


if __name__ == "__main__":
    sys.exit(main())
