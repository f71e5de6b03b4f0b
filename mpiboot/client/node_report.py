"""What `mpiboot doctor` checks on a node, on this machine and, in a job, on each node; the program of its job.

`python -m mpiboot.client.node_report ROOT BYTES` prints the reports of all nodes. `client.doctor` imports this module.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from envpack.common.mounts import file_system, is_memory
from envpack.stage.gc import usage
from mpiboot.common.faults import unexpected
from mpiboot.common.interfaces import interfaces
from mpiboot.common.units import show_size

GIB = 1024**3
NEEDED_BYTES = 2 * GIB  # enough for most environments
BLOCK_BYTES = 4096
NEEDED_FILES = 4096
REPORT = "mpiboot.doctor: "
CONNECT_TIMEOUT_S = 2.0
# Soft limits that end or hinder a worker, by the words for them: getrlimit(2).
LIMITS = {
    "CPU seconds": resource.RLIMIT_CPU,
    "bytes of memory": resource.RLIMIT_AS,
    "bytes per file": resource.RLIMIT_FSIZE,
}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes
    ----------
    name : str
        The thing that was checked.
    found : str
        The result: a fact about the machine, or the problem.
    remedy : str
        How to solve the problem; empty if the check passed.
    """

    name: str
    found: str
    remedy: str = ""


def node_checks(root: Path, copy_bytes: int | None = None) -> list[Check]:
    """Return the checks that every node must pass, this machine included.

    Parameters
    ----------
    root : Path
        The staging root.
    copy_bytes : int, optional
        What a staged copy of the environment takes, in bytes; None if it was not packed yet.
    """
    up = {name: found["address"] for name, found in interfaces().items() if not found["loopback"]}
    shown = ", ".join(f"{name} {address}" for name, address in up.items())
    no_network = "" if up else "bring an interface up, with an IPv4 address"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = (
        f"ask the site to raise the hard limit (nofile) to {NEEDED_FILES} or more"
        if 0 <= hard < NEEDED_FILES
        else ""
    )
    return [
        Check("interfaces", shown or "none", no_network),
        staging_root(root, copy_bytes),
        Check("open files", f"{soft}, at most {hard}", remedy),
    ]


def job_node_checks() -> list[Check]:
    """Return what jobs find on this node: facts, since this job runs."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count()
    home = Path.home()
    if not home.is_dir():
        how = "not there"
    elif os.access(home, os.W_OK):
        how = f"{file_system(home)[0]}, can be written"
    else:
        how = f"{file_system(home)[0]}, read-only: output and MPIBOOT_HOME must lie elsewhere"
    limits = [
        f"{soft} {what}"
        for what, limit in LIMITS.items()
        if (soft := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY
    ]
    return [
        Check("CPUs", f"{present}, all usable" if usable == present else f"{usable} of {present} usable"),
        Check("home", f"{home}, {how}"),
        Check("limits", ", ".join(limits) or "none of CPU time, memory and file size"),
    ]


def staging_root(root: Path, copy_bytes: int | None = None) -> Check:
    """Check whether the environment can be staged below `root`: there is space, and programs can run there."""
    if not root.is_dir() or not os.access(root, os.W_OK):
        return Check(
            "staging root",
            f"{root} cannot be written",
            "export MPIBOOT_STAGE_ROOT=FOLDER, on the node's own disk",
        )
    free, kind = shutil.disk_usage(root).free, file_system(root)[0]
    copies = usage(root)
    size = sum(copy.size_bytes for copy in copies)
    used = sum(copy.size_bytes for copy in copies if copy.in_use)
    found = f"{root}, {kind}{' (memory)' if is_memory(kind) else ''}, {show_size(free)} free"
    if copies:
        found += (
            f"; {len(copies)} staged copies take {show_size(size)}, of which {show_size(used)} are in use"
        )
    remedy = ""
    if os.statvfs(root).f_flag & os.ST_NOEXEC:
        found, remedy = f"{found}, noexec", "programs cannot run there: export MPIBOOT_STAGE_ROOT=FOLDER"
    elif free + size - used < (
        copy_bytes or NEEDED_BYTES
    ):  # a job removes copies that nobody uses for its own
        what = f"the environment, of {show_size(copy_bytes)}" if copy_bytes else "most environments"
        end_jobs = "end the jobs that use the copies (mpiboot list, mpiboot stop), or " if used else ""
        remedy = f"too little for {what}: {end_jobs}export MPIBOOT_STAGE_ROOT=FOLDER with more room"
    return Check("staging root", found, remedy)


@dataclass(frozen=True)
class NodeReport:
    """The checks of one node, and the addresses of its interfaces by their names."""

    checks: tuple[Check, ...]
    addresses: Mapping[str, str]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> NodeReport:
        """Make a report of its values in JSON."""
        return cls(tuple(Check(**check) for check in values["checks"]), values["addresses"])


def report_node(root: str, copy_bytes: int | None) -> tuple[str, NodeReport]:
    """Return this node's name and its report; runs on a worker."""
    checks = [*node_checks(Path(root), copy_bytes), *job_node_checks()]
    addresses = {name: found["address"] for name, found in interfaces().items() if not found["loopback"]}
    return socket.gethostname(), NodeReport(tuple(checks), addresses)


def connection_error(address: str, port: int) -> int:
    """Return the errno of a connection to a port of a host; 0 if a program takes it."""
    try:
        socket.create_connection((address, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return error.errno or errno.ETIMEDOUT
    return 0


def main(root: str, copy_bytes: int | None) -> None:
    """Let each worker check its node, and print the reports. This is the job's command."""
    from distributed import Client

    from mpiboot.client import node_report

    with Client() as client:
        reports = client.run(node_report.report_node, root, copy_bytes)
        here = urlsplit(client.scheduler.address).hostname  # the command runs beside the scheduler
        others = [worker for worker in reports if urlsplit(worker).hostname != here]
        with socket.create_server((here, 0)) as server:
            port = server.getsockname()[1]
            errors = client.run(node_report.connection_error, here, port, workers=others) if others else {}
    for worker, (node, report) in reports.items():
        checks = [ports_check(errors[worker], f"{here}:{port}")] if worker in errors else []
        report = replace(report, checks=(*report.checks, *checks))
        print(REPORT + json.dumps([node, asdict(report)]), flush=True)


def ports_check(error: int, address: str) -> Check:
    """Return the check whether a node reaches a port of another one that nobody has chosen."""
    if error == 0:
        return Check("ports", f"{address}, a port that nobody chose, is reached")
    return Check(
        "ports",
        f"{address}, a port that nobody chose, is not reached ({os.strerror(error)}): use --worker-port",
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]) or None)
    except Exception as error:
        sys.exit(f"mpiboot: {unexpected(error)}")
