"""Inside each nanny: how its worker ended is told, and its worker does not take itself for an MPI rank."""

import os
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

from distributed import Nanny

from mpiboot.common.mpi import WORKER_UNSET_PREFIXES
from mpiboot.protocol.variables import MPI_ONLY_VARIABLE

WORKER_EXIT_TOPIC = "mpiboot-worker-exit"
CGROUPS = Path("/sys/fs/cgroup")


def dask_setup(nanny: Nanny) -> None:
    # A task that imports mpi4py would take itself for the nanny's rank, and wait for ever in MPI_Init.
    mpi_only = (*os.environ.get(MPI_ONLY_VARIABLE, "").split(), MPI_ONLY_VARIABLE)
    for name in [name for name in os.environ if name.startswith(WORKER_UNSET_PREFIXES) or name in mpi_only]:
        del os.environ[name]
    if not hasattr(nanny._on_worker_exit_sync, "mpiboot"):  # preloads can run twice
        nanny._on_worker_exit_sync = reporting(nanny, nanny._on_worker_exit_sync)


def reporting(nanny: Nanny, on_exit: Callable[[int], None]) -> Callable[[int], None]:
    """Wrap what a nanny does when its worker's process has ended: unless it was asked to end, boot is told."""
    ended_before, kills_before = ended_for_memory(nanny), cgroup_kills()

    def report(exit_status: int) -> None:
        nonlocal ended_before, kills_before
        if nanny.status.name == "running":
            ended, kills = ended_for_memory(nanny), cgroup_kills()
            killed = kills > kills_before and exit_status == -SIGKILL
            memory = "limit" if ended != ended_before else "cgroup" if killed else None
            ended_before, kills_before = ended, kills
            nanny.log_event(WORKER_EXIT_TOPIC, describe(nanny, exit_status, memory))
        on_exit(exit_status)

    report.mpiboot = True  # type: ignore[attr-defined]
    return report


def ended_for_memory(nanny: Nanny) -> int | None:
    """The pid of the last worker that the nanny itself ended for its memory; by now the nanny has no pid of it."""
    return getattr(nanny.memory_manager, "_last_terminated_pid", None)


def describe(nanny: Nanny, exit_status: int, memory: str | None) -> dict[str, Any]:
    return {
        "address": nanny.worker_address,
        "name": str(nanny.name),
        "ip": nanny.ip,
        "exit_status": exit_status,
        "memory": memory,
        "limit_bytes": nanny.memory_manager.memory_limit,
    }


def cgroup_kills() -> int:
    """How many processes of this process's control group the kernel has ended for their memory (cgroups(7))."""
    total = 0
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            counts = CGROUPS / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            counts = CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control"
        else:
            continue
        try:
            words = counts.read_text().split()
        except OSError:
            continue
        total += int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0
    return total
