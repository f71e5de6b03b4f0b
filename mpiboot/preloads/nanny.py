"""Preload of every nanny: hides MPI's variables from the worker, and reports to boot how a worker process ended.

distributed imports this module by name (`protocol.rank_environment`); it imports distributed and the rooms that preloads
may import.
"""

import ctypes
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL
from typing import Any

from distributed import Nanny

from mpiboot.common.mpi import WORKER_UNSET_PREFIXES
from mpiboot.common.patterns import matches
from mpiboot.distributed_internals import last_ended_for_memory, on_worker_exit, worker_memory_limit
from mpiboot.protocol.variables import MPI_ONLY_VARIABLE, WORKER_PAGES_VARIABLE

OWN_PRELOADS = f"{__package__}."
WORKER_EXIT_TOPIC = "mpiboot-worker-exit"
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def dask_setup(nanny: Nanny) -> None:
    """Prepare a nanny; distributed calls this before the nanny starts its worker, and may call it twice."""
    # With MPI's variables, a task that imports mpi4py would start as the nanny's rank, and wait forever in MPI_Init.
    if offset := os.environ.get(WORKER_PAGES_VARIABLE):
        # One port per nanny, and so per worker, on this host. If another program has it, distributed takes any other.
        nanny.worker_kwargs["dashboard_address"] = f"{nanny.ip}:{nanny.port + int(offset)}"
    mpi_only = [*os.environ.get(MPI_ONLY_VARIABLE, "").split(), MPI_ONLY_VARIABLE]
    for name in {*os.environ, *library_variables()}:
        if name.startswith(WORKER_UNSET_PREFIXES) or matches(name, mpi_only):
            os.environ.pop(name, None)
            os.unsetenv(name)
    forget_own_preloads(nanny.config)
    on_worker_exit(nanny, exit_reporter(nanny))


def library_variables() -> Iterator[str]:
    """Yield the names in the C library's environment, which a new process inherits: MPI's library adds some.

    Python does not see what others change there (os.environ).
    """
    entries = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    for entry in itertools.takewhile(bool, (entries[number] for number in itertools.count())):
        yield os.fsdecode(entry or b"").partition("=")[0]


def forget_own_preloads(config: dict[str, Any]) -> None:
    """Remove mpiboot's preloads from the Dask configuration that the worker gets, for clusters that its tasks make.

    The worker's own are arguments, which the nanny has read already.
    """
    for role in ("scheduler", "nanny", "worker"):
        settings = config["distributed"][role]
        preloads, arguments = settings["preload"], settings["preload-argv"]
        theirs = [number for number, name in enumerate(preloads) if not name.startswith(OWN_PRELOADS)]
        if len(theirs) < len(preloads):
            settings |= {
                "preload": [preloads[number] for number in theirs],
                "preload-argv": [arguments[number] for number in theirs],
            }


def exit_reporter(nanny: Nanny) -> Callable[[int], None]:
    """Return a function that takes the exit status of a nanny's worker, and logs an event unless the nanny ended it.

    The scheduler's preload passes the event on to boot, which a nanny cannot reach.
    """
    ended_before, oom_kills_before = last_ended_for_memory(nanny), count_oom_kills()

    def report(exit_status: int) -> None:
        nonlocal ended_before, oom_kills_before
        if nanny.status.name != "running":
            return
        ended, oom_kills = last_ended_for_memory(nanny), count_oom_kills()
        killed = oom_kills > oom_kills_before and exit_status == -SIGKILL
        memory = "limit" if ended != ended_before else "cgroup" if killed else None
        ended_before, oom_kills_before = ended, oom_kills
        nanny.log_event(WORKER_EXIT_TOPIC, worker_exit_message(nanny, exit_status, memory))

    return report


def worker_exit_message(nanny: Nanny, exit_status: int, memory: str | None) -> dict[str, Any]:
    """Return a `worker-exit` event (see `protocol.control`).

    Parameters
    ----------
    nanny : distributed.Nanny
        The worker's nanny.
    exit_status : int
        As returned by `Popen.wait`: negative for a signal.
    memory : {"limit", "cgroup"} or None
        `limit`: the nanny ended the worker near its memory limit; `cgroup`: the kernel killed it at the job's limit;
        None: neither.
    """
    return {
        "address": nanny.worker_address,
        "name": str(nanny.name),
        "ip": nanny.ip,
        "exit_status": exit_status,
        "memory": memory,
        "limit_bytes": worker_memory_limit(nanny),
    }


def count_oom_kills() -> int:
    """Count the processes of this process's control group that the kernel has killed for their memory (cgroups(7))."""
    total = 0
    for line in OWN_CGROUPS.read_text().splitlines():
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
