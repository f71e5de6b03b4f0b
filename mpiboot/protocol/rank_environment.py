"""The environment of the ranks: `rank_variables` makes it, from boot's own environment and the job's settings.

Client and boot import this module: `requested_variables` and `of_another_job` serve a submit, too. `environment_table`
says what becomes of each variable.
"""

import json
import os
import pwd
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from mpiboot.common.mpi import LAUNCH_PREFIXES
from mpiboot.common.patterns import matches
from mpiboot.errors import UsageError
from mpiboot.protocol import secrets
from mpiboot.protocol import variables as names
from mpiboot.protocol.activation import activated
from mpiboot.protocol.environment_table import EnvironmentTable, Fate
from mpiboot.protocol.relocation import Relocation

# Dask's settings that mpiboot changes unless the user has: a lost node must cost neither tasks nor workers elsewhere.
# Dask's default of 30 s for connections would lose workers before a cut-off agent gives up its node
# (protocol.channel.SILENCE_S).
DASK_DEFAULTS = {
    "distributed.scheduler.allowed-failures": 10,
    "distributed.scheduler.worker-ttl": "60s",
    "distributed.comm.timeouts.tcp": "50s",
}


def rank_variables(
    environ: Mapping[str, str],
    requested: Mapping[str, str],
    *,
    table: EnvironmentTable,
    mpi_only: Sequence[str],
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
    """Make the environment of every rank, without the variables that its launcher and its node add.

    Later layers have precedence: settings of MPI; the user's environment, activated in `prefix`, as `table` says; what
    the job's processes need; the variables of `--env-var`; encryption.

    Parameters
    ----------
    environ : mapping
        Environment of boot.
    requested : mapping
        Variables of `--env-var`.
    table : EnvironmentTable
        What becomes of each variable of `environ`.
    mpi_only : sequence of str
        Patterns of the launcher's variables that tasks do not inherit.
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
    users = user_variables(environ, table, source, prefix)
    relocation = Relocation(source, prefix, environ)
    requested = {name: relocation.value(value) for name, value in requested.items()}
    tasks_lack = [*(mpi.keys() - users.keys() - requested.keys()), names.DASK_SETTINGS_VARIABLE, *mpi_only]
    ours = {
        names.CONTROL_FOLDER_VARIABLE: str(job_folder),
        names.IDLE_TIMEOUT_VARIABLE: "" if idle_timeout_s is None else f"{idle_timeout_s:.17g}",
        names.JOB_KEY_VARIABLE: job_directory.name,
        names.MPI4PY_FINALIZE: "0",
        names.MPI_ONLY_VARIABLE: " ".join(tasks_lack),
        names.DASK_SETTINGS_VARIABLE: json.dumps(dask_settings(encrypted)),
    }
    security = {}
    if encrypted:
        security = secrets.dask_tls_environment(job_directory)
        security |= secrets.guard_environment(job_directory, dashboard_origins)
        if dashboard_tls:
            security |= secrets.dashboard_tls_environment(job_directory)
    theirs = without_other_spellings({**mpi, **users, "TMPDIR": str(job_folder), **requested}, security)
    return theirs | ours | security


def user_variables(
    environ: Mapping[str, str], table: EnvironmentTable, source: Path, prefix: Path
) -> dict[str, str]:
    """Return what every rank has of boot's environment, activated in `prefix`: all that the table keeps.

    Raises
    ------
    StageError
        The prefix could not be activated.
    """
    relocation = Relocation(source, prefix, environ)
    # The activation needs the variables that name the active environment; its scripts may ask for any other.
    before = {name: value for name, value in environ.items() if name not in names.PYTHON_VARIABLES}
    before |= {
        name: relocation.value(value)
        for name, value in before.items()
        if name not in names.ACTIVE_ENVIRONMENT
    }
    before["PATH"] = with_first(str(prefix / "bin"), before.get("PATH") or os.defpath)
    after = activated(before, source, prefix)
    return {
        name: relocation.value(value)
        for name, value in after.items()
        if name in names.ACTIVE_ENVIRONMENT
        or table.fate(name) not in (Fate.MADE, Fate.PER_NODE, Fate.LEFT_OUT)
    }


def with_first(folder: str, path: str) -> str:
    """Return a PATH in which `folder` comes first, without empty entries: those mean the working directory."""
    return ":".join(dict.fromkeys([folder, *filter(None, path.split(":"))]))


def dask_settings(encrypted: bool) -> dict[str, dict[str, object]]:
    """Return what rank/run_dask_mpi.py changes in Dask's configuration: preloads of each role, and defaults."""
    guard = [secrets.GUARD_PRELOAD] if encrypted else []
    preloads = {
        "scheduler": [*guard, "mpiboot.preloads.scheduler"],
        "nanny": [*guard, "mpiboot.preloads.nanny"],
        "worker": guard,
    }
    return {"preload": dict(preloads), "defaults": dict(DASK_DEFAULTS)}


def without_other_spellings(variables: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """Return `variables` without those by which Dask would read a setting of `ours`: it ignores case, and `-` is `_`."""
    keys = {dask_key(name) for name in ours}
    return {
        name: value
        for name, value in variables.items()
        if name in ours or not name.startswith(names.DASK_PREFIX) or dask_key(name) not in keys
    }


def dask_key(name: str) -> str:
    """Return the setting that a variable means (dask.config.collect_env)."""
    return name.lower().replace("-", "_")


def task_environment(variables: Mapping[str, str], nodes_own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the batch command: a task's on the first node.

    Parameters
    ----------
    variables : mapping
        From `rank_variables`.
    nodes_own : mapping
        The variables that the batch system has set on this node.
    """
    lacking = [*variables[names.MPI_ONLY_VARIABLE].split(), names.MPI_ONLY_VARIABLE]
    return {**nodes_own, **{name: value for name, value in variables.items() if not matches(name, lacking)}}


def of_another_job(name: str) -> bool:
    """Whether a variable belongs to the cluster, or the MPI run, in which a submit runs.

    The submitted job must not inherit it. `batch.registry` decides about the variables of batch systems.
    """
    if name in names.USER_VARIABLES:
        return False
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
    """Return the variables of a login that `environ` lacks: mpirun fails without HOME (unset by `--export=NONE`).

    A host need not know the user's name, such as a container, or a node whose directory service does not answer.
    """
    try:
        user = pwd.getpwuid(os.getuid())
        name, home = user.pw_name, user.pw_dir
    except KeyError:
        name, home = environ.get("USER") or environ.get("LOGNAME") or str(os.getuid()), "/"
    usual = {"HOME": home, "USER": name, "LOGNAME": name, "PATH": os.defpath}
    return {name: value for name, value in usual.items() if not environ.get(name)}
