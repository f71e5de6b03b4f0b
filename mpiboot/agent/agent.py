"""mpiboot's process on each node, `python -m mpiboot.agent.agent ORDERS`: ORDERS is an `AgentOrders` in JSON.

It prepares the node, stages the environment, starts the node's ranks, and lives as long as the job. When its stdin is
closed or it gets SIGTERM, it ends the processes that the job has left on this node, and removes the job's folder. (A
program started only at that point would be too late: a batch system may start none in a job that is being cancelled.)
Each answer to boot is one line of JSON. All nodes start the agent at once from the shared file system, so it imports few
modules.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from envpack.common.mounts import file_system, is_memory
from envpack.common.places import host_name
from mpiboot.agent.adopt import Ranks
from mpiboot.agent.folders import clean, make_job_folder
from mpiboot.common.interfaces import interfaces
from mpiboot.common.units import show_duration
from mpiboot.protocol.job_directory import JobDirectory
from mpiboot.protocol.node import HEARTBEAT_S, SILENCE_S, AgentOrders, StageOrder, job_folder

# Keep the sum of this and the graces in sweep.py below the shortest time that a batch system leaves a cancelled job
# between SIGTERM and SIGKILL, after which it kills the agents.
LEFTOVERS_GRACE_S = 2.5
CANCEL_TIMEOUT_S = 30.0
# A batch system may keep only lines of up to 1024 bytes intact; longer lines of several nodes may mix.
ERROR_LENGTH_MAX = 600


class JobEnded(BaseException):
    """The job ends: the handler of SIGTERM raises it, at any point of the agent."""


def main() -> int:
    orders: AgentOrders = json.loads(sys.argv[1])
    folder = job_folder(Path(orders["root"]), orders["job_key"])
    signal.signal(signal.SIGTERM, on_sigterm)
    # Boot acts on the terminal's and the walltime's signals.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    failed = cancelled = False
    try:
        failed = not answer(orders, lambda: prepare(orders))
        if not failed:
            with contextlib.closing(Ranks(folder, node_name(orders))) as ranks:
                cancelled = not follow_boot(orders, ranks)
    except JobEnded:
        cancelled = True
    except BrokenPipeError:
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if folder.is_dir():
        clean(folder, LEFTOVERS_GRACE_S)
    if cancelled or node_name(orders) == orders["first_node"]:
        # Boot does so too, unless it was killed. An agent of another node that only lost its connection must not.
        JobDirectory(Path(orders["job_directory"])).clear()
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"node": node_name(orders), "clean": True}), flush=True)
    return int(failed)


def on_sigterm(_number: int, _frame: object) -> NoReturn:
    raise JobEnded


def node_name(orders: AgentOrders) -> str:
    """Return this node's name, as the batch system calls it."""
    variable = orders["node_variable"]
    return (os.environ.get(variable) if variable else None) or host_name()


def follow_boot(orders: AgentOrders, ranks: Ranks) -> bool:
    """Follow boot's orders, one per line, and start this node's ranks, until boot is gone.

    Returns
    -------
    bool
        True if boot has closed the agent's stdin. False if boot was silent for SILENCE_S: then its node is lost, and the
        job is cancelled, because some batch systems let a job continue without its first node.
    """
    partial, silent_s = b"", 0.0
    with selectors.DefaultSelector() as selector:
        for source in (0, ranks.listener):
            selector.register(source, selectors.EVENT_READ)
        while silent_s < SILENCE_S:
            began = time.monotonic()
            ready = {key.fileobj for key, _ in selector.select(HEARTBEAT_S)}
            # The time in which the job was suspended does not count as boot's silence.
            silent_s += min(time.monotonic() - began, 2 * HEARTBEAT_S)
            if 0 in ready:
                if not (data := os.read(0, 1 << 16)):
                    return True
                silent_s = 0.0
                *lines, partial = (partial + data).split(b"\n")
                for order in (json.loads(line) for line in lines if line):
                    answer(orders, lambda order=order: stage_node(orders, order))  # type: ignore[misc]
            if ranks.listener in ready:
                ranks.adopt()
    if command := orders["cancel_command"]:
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # the cancelled job's SIGTERM must not interrupt what follows
        # If the environment is on the first node's file system, that may be gone, too.
        with contextlib.suppress(OSError, ImportError, subprocess.TimeoutExpired):
            if not subprocess.run(command, stdin=subprocess.DEVNULL, timeout=CANCEL_TIMEOUT_S).returncode:
                record_loss(orders)
    return False


def prepare(orders: AgentOrders) -> dict[str, Any]:
    """Make the job's folder on this node, and describe the node.

    Returns
    -------
    dict
        `interfaces` (see `mpiboot.common.interfaces`), `memory_bytes` and `cpus` of the host, `root_is_memory` (whether
        the staging root takes up memory), and `has_stage` (whether the environment was staged here before).
    """
    folder = make_job_folder(Path(orders["root"]), orders["job_key"])
    return {
        "interfaces": interfaces(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cpus": os.cpu_count(),
        "root_is_memory": is_memory(file_system(folder)[0]),
        "has_stage": bool(orders["prefix"]) and Path(str(orders["prefix"])).is_dir(),
    }


def stage_node(orders: AgentOrders, order: StageOrder) -> dict[str, Any]:
    """Stage the environment on this node.

    Returns
    -------
    dict
        `stage`: envpack's result, and `start` and `end` in seconds since the epoch.
    """
    from envpack.stage.staging import stage

    start = time.time()
    result = stage(
        order["archive"],
        orders["root"],
        jobs=orders["threads"],
        expected_pack_id=orders["pack_id"],
        transport=order["transport"],
    )
    if order["remove_archive"]:
        Path(order["archive"]).unlink()
    return {"stage": {**result.asdict(), "start": start, "end": time.time()}}


def record_loss(orders: AgentOrders) -> None:
    """Write the job's last event instead of boot: nothing else records why the job was cancelled."""
    from mpiboot.protocol.events import EventLog

    first = orders["first_node"]
    reason = f"the first node, {first}, is lost: nothing was heard of it for {show_duration(SILENCE_S)}"
    events = EventLog(JobDirectory(Path(orders["job_directory"])).events)
    events.write("closed", reason=reason, detail="", exit_status=1, host=node_name(orders))
    events.close()


def answer(orders: AgentOrders, act: Callable[[], dict[str, Any]]) -> bool:
    """Execute an order, and send boot the result or the error. No other function of the agent handles errors.

    Returns
    -------
    bool
        Whether it succeeded.
    """
    try:
        result = act()
    except Exception as error:
        result = {"error": shorten(str(error) or type(error).__name__)}
    print(json.dumps({"node": node_name(orders), **result}, separators=(",", ":")), flush=True)
    return "error" not in result


def shorten(message: str) -> str:
    """Cut the middle out of a message that is too long to send, and keep its end, which is the remedy."""
    half = ERROR_LENGTH_MAX // 2
    return message if len(message) <= ERROR_LENGTH_MAX else f"{message[:half]} … {message[-half:]}"


if __name__ == "__main__":
    sys.exit(main())
