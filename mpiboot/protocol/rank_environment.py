"""The environment of the ranks: `rank_variables` makes it, from boot's own environment and the job's settings.

Client and boot import this module: `requested_variables` and `of_another_job` serve a submit, too. It imports
`envpack.common`, `common.mpi`, `protocol.secrets`, `protocol.variables` and the errors.
"""

import os
import pwd
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from envpack.common.prefix import is_conda
from mpiboot.common.mpi import LAUNCH_PREFIXES, RANK_UNSET_PREFIXES
from mpiboot.errors import StageError, UsageError
from mpiboot.protocol import secrets
from mpiboot.protocol import variables as names


def rank_variables(
    environ: Mapping[str, str],
    requested: Mapping[str, str],
    *,
    batch_prefixes: tuple[str, ...],
    source: Path,
    prefix: Path,
    job_directory: Path,
    job_folder: Path,
    interface: str | None,
    idle_timeout_s: float | None,
    encrypted: bool,
    dashboard_tls: bool,
    dashboard_origins: str | None = None,
    ports: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Make the environment of every rank, without the variables that its launcher adds.

    Later layers have precedence: settings of Dask and MPI; the user's environment, activated in `prefix`, without
    variables of one host or one run; the variables of `--env-var`; preloads and encryption.

    Parameters
    ----------
    environ : mapping
        Environment of boot.
    requested : mapping
        Variables of `--env-var`.
    batch_prefixes : tuple of str
        How the names of batch systems' variables start.
    source, prefix : Path
        The source prefix, and the one that the ranks run from.
    job_directory, job_folder : Path
        The job's directory on the shared file system, and its folder on each node.
    interface : str or None
        Network interface for MPI; None: any.
    idle_timeout_s : float or None, seconds
        When an idle cluster closes; None: never.
    encrypted : bool
        Whether the job has TLS files.
    dashboard_tls : bool
        Whether an encrypted job's dashboard speaks https.
    dashboard_origins : str, optional
        Origins, with blanks in between, whose pages may show the dashboard.
    ports : mapping, optional
        Variables that limit the ports of MPI and of the workers' pages.

    Returns
    -------
    dict[str, str]
        The variables.

    Raises
    ------
    StageError
        The prefix could not be activated.
    """
    mpi = {**names.MPI_TCP_ONLY, **ports}
    if interface:
        # A UCX address that contains all of a node's devices exceeds the limit of a value in a batch system's PMI-1
        # (1024 bytes), and MPICH aborts.
        mpi |= {names.UCX_TRANSPORTS: "tcp,self,sm", names.UCX_DEVICES: interface}
    users = carried(activation(prefix, relocated(environ, source, prefix), source), batch_prefixes)
    guard = [secrets.GUARD_PRELOAD] if encrypted else []
    variables = {
        names.DASK_ALLOWED_FAILURES: "10",
        names.DASK_WORKER_TTL: "60s",
        # Dask's default of 30 s would lose workers before a cut-off agent gives up its node (protocol.channel.SILENCE_S).
        names.DASK_TCP_TIMEOUT: "50s",
        **mpi,
        **users,
        names.CONTROL_FOLDER_VARIABLE: str(job_folder),
        names.IDLE_TIMEOUT_VARIABLE: "" if idle_timeout_s is None else f"{idle_timeout_s:.17g}",
        names.JOB_KEY_VARIABLE: job_directory.name,
        names.MPI4PY_FINALIZE: "0",
        names.MPI_ONLY_VARIABLE: " ".join(mpi.keys() - users.keys() - requested.keys()),
        "TMPDIR": str(job_folder),
        **requested,
        names.DASK_SCHEDULER_PRELOAD: str([*guard, "mpiboot.preloads.scheduler"]),
        names.DASK_NANNY_PRELOAD: str([*guard, "mpiboot.preloads.nanny"]),
    }
    if encrypted:
        variables[names.DASK_WORKER_PRELOAD] = str(guard)
        variables |= secrets.dask_tls_environment(job_directory)
        variables |= secrets.guard_environment(job_directory, dashboard_origins)
        if dashboard_tls:
            variables |= secrets.dashboard_tls_environment(job_directory)
    return variables


def relocated(environ: Mapping[str, str], source: Path, prefix: Path) -> dict[str, str]:
    """Return `environ` with `prefix` active instead of `source`."""
    variables = {name: value for name, value in environ.items() if name not in names.PYTHON_VARIABLES}
    path = [
        part for part in variables.get("PATH", os.defpath).split(":") if part and not _inside(part, source)
    ]
    variables["PATH"] = ":".join([str(prefix / "bin"), *path])
    for name in names.PATH_LISTS:
        if name in variables:
            variables[name] = ":".join(
                str(prefix) + part[len(str(source)) :] if _inside(part, source) else part
                for part in variables[name].split(":")
            )
    for name in (names.CONDA_PREFIX, names.VIRTUAL_ENV):
        variables.pop(name, None)
    variables[names.CONDA_PREFIX if is_conda(prefix) else names.VIRTUAL_ENV] = str(prefix)
    variables[names.PYTHON_NO_USER_SITE] = "1"
    return variables


def _inside(path: str, folder: Path) -> bool:
    return path == str(folder) or path.startswith(f"{folder}/")


def activation(prefix: Path, environ: Mapping[str, str], source: Path) -> dict[str, str]:
    """Return `environ` after the `activate.d` scripts of a conda prefix, sourced in their order as conda does.

    Parameters
    ----------
    prefix : Path
        The prefix; without such scripts, nothing changes.
    environ : mapping
        The environment of the scripts.
    source : Path
        The prefix that `prefix` is a copy of, for the remedy.

    Raises
    ------
    StageError
        bash could not be run, or a script has ended it.
    """
    scripts = sorted((prefix / "etc/conda/activate.d").glob("*.sh"))
    if not scripts:
        return dict(environ)
    # The scripts may test unset variables, which must not end the shell, and print to stdout, which must not get into
    # the output that is parsed.
    code = 'exec 3>&1 >&2; for script in "$@"; do . "$script"; done; env -0 >&3'
    command = ["bash", "-c", code, "activate", *map(str, scripts)]
    try:
        done = subprocess.run(command, env=dict(environ), capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StageError(
            f"the scripts in {prefix}/etc/conda/activate.d could not be sourced: {error}",
            f"Try it by hand: conda activate {shlex.quote(str(source))}",
        ) from error
    if done.returncode:
        raise StageError(
            f"the scripts in {prefix}/etc/conda/activate.d ended with status {done.returncode}: "
            f"{os.fsdecode(done.stderr).strip()[-500:]}",
            f"Find the script that exits: conda activate {shlex.quote(str(source))}",
        )
    pairs = (entry.partition("=") for entry in os.fsdecode(done.stdout).split("\0") if entry)
    return {name: value for name, _, value in pairs}


def carried(environ: Mapping[str, str], batch_prefixes: tuple[str, ...]) -> dict[str, str]:
    """Return the variables that every rank gets from boot: all except those of a host, a login session or a step.

    Parameters
    ----------
    environ : mapping
        The environment of boot.
    batch_prefixes : tuple of str
        How the names of batch systems' variables start.
    """
    left_out = (*batch_prefixes, *RANK_UNSET_PREFIXES, *names.HOST_PREFIXES)
    return {
        name: value
        for name, value in environ.items()
        if name not in names.HOST_VARIABLES and not name.startswith(left_out)
    }


def of_another_job(name: str) -> bool:
    """Whether a variable belongs to the cluster, or the MPI run, in which a submit runs.

    The submitted job must not inherit it. `batch.registry` decides about the variables of batch systems.
    """
    if name in names.USER_VARIABLES:
        return False
    if name.startswith(names.DASK_DISTRIBUTED_PREFIX) and name.endswith("__PRELOAD"):
        return True
    return name.startswith(
        (names.MPIBOOT_PREFIX, names.DASK_SCHEDULER_ADDRESS, names.DASK_TLS_PREFIX, *LAUNCH_PREFIXES)
    )


def requested_variables(items: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `--env-var`.

    Parameters
    ----------
    items : sequence of str
        Each is `NAME=VALUE`, or `NAME` with its value in `environ`.
    environ : mapping
        Environment variables.

    Raises
    ------
    UsageError
        `environ` does not have a NAME.
    """
    variables = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not name or not (equals or name in environ):
            raise UsageError(
                f"--env-var {item}: {name or 'the name'} is not set", "Write --env-var NAME=VALUE"
            )
        variables[name] = value if equals else environ[name]
    return variables


def login_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a login that `environ` lacks: mpirun fails without HOME (unset by `--export=NONE`)."""
    user = pwd.getpwuid(os.getuid())
    usual = {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "PATH": os.defpath}
    return {name: value for name, value in usual.items() if not environ.get(name)}
