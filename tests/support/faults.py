"""A user's jobs that tests break: boot one, watch its events, kill parts of it, list what it leaves behind."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurmcluster import Minicluster
from user import User
from waiting import wait_until

# Prints a user's processes on a node, and the files in shared folders except stages and locks, which stay there.
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
# In the command lines of a node's ranks. The first is the server that they are forked from.
RANK = "[r]un_dask_mpi"
SECRETS = ("tls", "endpoint.json", "scheduler.json", "rank-environment.json")


@dataclass
class BootedJob:
    user: User
    job_id: str
    folder: Path  # the job directory, by its path on this machine

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
        return self._slurm_says("JobState")

    def exit_code(self) -> str:
        return self._slurm_says("ExitCode")

    def _slurm_says(self, key: str) -> str:
        words = self.user.types("scontrol", "show", "job", self.job_id).stdout.split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{key}="))

    def stop(self) -> None:
        """Stop the job as its user does, and wait for its end."""
        self.user.stops(self.job_id)
        self.wait_ended()

    def wait_ended(self, timeout_s: float = 30) -> float:
        """Wait until Slurm has the nodes back; return how many seconds that took."""
        began = time.monotonic()
        wait_until(
            lambda: self.slurm_state() not in ("PENDING", "RUNNING", "COMPLETING"),
            "the end",
            timeout_s,
            self.events,
        )
        return time.monotonic() - began


def boot(
    user: User,
    *options: str,
    command: Sequence[str] = (),
    ready: bool = True,
    staged: bool = False,
) -> BootedJob:
    """Submit a small job, and wait until it is ready."""
    small = ("--interface", "ib0", "--cpus-per-worker", "1", *([] if staged else ["--no-stage"]))
    job_id = user.submits(*small, *options, *(["--", *command] if command else []))
    job = BootedJob(user, job_id, user.job_directory(job_id))
    if ready:
        job.wait_for("ready", timeout_s=120)
    return job


def kill(
    cluster: Minicluster, node: int, pattern: str, *, signal: str = "KILL", which: str = "head -1"
) -> None:
    """Signal one of alice's processes on a node, found by its command line."""
    script = f'pid=$(pgrep -u "$USER" -f "{pattern}" | {which}) && kill -{signal} $pid'
    cluster.node(node, ["bash", "-c", script])


def remains(user: User, nodes: Sequence[int] = (1, 2, 3)) -> list[str]:
    """List the user's processes and files that are left on the nodes, and the secrets left in job directories."""
    on_nodes = [
        f"node{node}: {line}"
        for node in nodes
        for line in user.types("bash", "-c", LIST, node=node).stdout.splitlines()
    ]
    secrets = [job / name for job in user.jobs().glob("*") for name in SECRETS if (job / name).exists()]
    return on_nodes + [str(path) for path in secrets]


def assert_nothing_remains(user: User, nodes: Sequence[int] = (1, 2, 3), timeout_s: float = 15) -> None:
    """Fail unless nothing is left in time: agents may still remove files after Slurm has released the nodes."""
    wait_until(lambda: not remains(user, nodes), "clean nodes", timeout_s, lambda: remains(user, nodes))
