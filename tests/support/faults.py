"""Jobs on the minicluster to be broken: booted, watched, and searched for what they leave."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurmcluster import Minicluster

# Prints what a user has on a node: processes, files in the folders of all, what mpiboot keeps there for good left out.
LIST = r"""
for environ in /proc/[0-9]*/environ; do
  pid=${environ#/proc/}; pid=${pid%/environ}
  [ "$pid" = $$ ] || [ -O "$environ" ] && tr '\0' '\n' < "$environ" 2>/dev/null | grep -q MPIBOOT_JOB_KEY &&
    echo "process $pid: $(tr '\0' ' ' < /proc/$pid/cmdline | cut -c1-120)"
done
for pid in $(pgrep -u "$USER" 'python|prterun|prted|mpirun|hydra|mpiexec|srun|dask'); do
  [ "$pid" = $$ ] || echo "process $pid: $(tr '\0' ' ' < /proc/$pid/cmdline | cut -c1-120)"
done
find /tmp /var/tmp /dev/shm -user "$USER" ! -path /tmp/mpiboot-$UID ! -path /tmp/mpiboot-$UID/.jobs \
  ! -path "/tmp/mpiboot-$UID/.*lock*" ! -path "/tmp/mpiboot-$UID/[0-9a-z]*"
true
"""
SECRETS = ("tls", "endpoint.json", "scheduler.json", "rank-environment.json")


@dataclass
class BootedJob:
    cluster: Minicluster
    job_id: str
    folder: Path

    def events(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events() if name in (event["event"], event.get("phase"))]

    def wait_for(self, name: str, count: int = 1, timeout_s: float = 60) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.named(name)) >= count, f"{count} of {name}", timeout_s, self.events)
        return self.named(name)

    def slurm_state(self) -> str:
        words = self.cluster.login(["scontrol", "show", "job", self.job_id]).stdout.split()
        return next(word.partition("=")[2] for word in words if word.startswith("JobState="))

    def exit_code(self) -> str:
        words = self.cluster.login(["scontrol", "show", "job", self.job_id]).stdout.split()
        return next(word.partition("=")[2] for word in words if word.startswith("ExitCode="))

    def wait_ended(self, timeout_s: float = 15) -> float:
        """Wait until Slurm has the nodes back; how long that took."""
        began = time.monotonic()
        wait_until(
            lambda: self.slurm_state() not in ("PENDING", "RUNNING", "COMPLETING"),
            "the end",
            timeout_s,
            self.events,
        )
        return time.monotonic() - began


def wait_until(done: Callable[[], bool], what: str, timeout_s: float, seen: Callable[[], Any] = str) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s; seen: {seen()}"
        time.sleep(0.2)


def boot(
    cluster: Minicluster,
    *options: str,
    command: Sequence[str] = (),
    ready: bool = True,
    staged: bool = False,
) -> BootedJob:
    """Submit a small job, and wait until it is ready."""
    small = ("--interface", "ib0", "--cpus-per-worker", "1", *([] if staged else ["--no-stage"]))
    submit = [
        f"{cluster.env}/bin/mpiboot",
        "submit",
        *small,
        *options,
        *(["--", *command] if command else []),
    ]
    job_id = cluster.login(submit, timeout_s=90).stdout.strip()
    job = BootedJob(cluster, job_id, cluster.home / ".mpiboot/jobs" / f"slurm-{cluster.name}-{job_id}")
    if ready:
        job.wait_for("ready", timeout_s=120)
    return job


def kill(
    cluster: Minicluster, node: int, pattern: str, *, signal: str = "KILL", which: str = "head -1"
) -> None:
    """Signal one process of a node's, found by its command line."""
    script = f'pid=$(pgrep -u "$USER" -f "{pattern}" | {which}) && kill -{signal} $pid'
    cluster.node(node, ["bash", "-c", script])


def remains(cluster: Minicluster, nodes: Sequence[int] = (1, 2, 3)) -> list[str]:
    """What of the user's is left on the nodes, and of secrets in the job directories."""
    found = [
        f"node{node}: {line}"
        for node in nodes
        for line in cluster.node(node, ["bash", "-c", LIST]).stdout.splitlines()
    ]
    jobs = cluster.home / ".mpiboot/jobs"
    return found + [str(path) for job in jobs.glob("*") for name in SECRETS if (path := job / name).exists()]


def assert_nothing_remains(
    cluster: Minicluster, nodes: Sequence[int] = (1, 2, 3), timeout_s: float = 5
) -> None:
    """Listed, not trusted; an agent may still be removing when Slurm has the nodes back."""
    wait_until(lambda: not remains(cluster, nodes), "clean nodes", timeout_s, lambda: remains(cluster, nodes))
