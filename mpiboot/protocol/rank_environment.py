"""The environment of the ranks: the staged prefix is active, and nothing of the source prefix is left.

Standard library only.
"""

import os
import pwd
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from envpack.common.places import HOME_VARIABLE, STAGE_ROOT_VARIABLE
from envpack.common.prefix import is_conda, kind_of
from mpiboot.common.mpi import LAUNCH_PREFIXES, PYPI_PACKAGES, RANK_UNSET_PREFIXES, launcher_mpi, library_mpi
from mpiboot.errors import EnvironmentUnfitError, StageError, UsageError

# Of a host, a step or a login session: never carried from one node to another, nor from one job to the next.
HOST_PREFIXES = (
    "SLURM_",
    *RANK_UNSET_PREFIXES,
    "XDG_",
    "SSH_",
    "DBUS_",
)
HOST_NAMES = frozenset(
    ("HOSTNAME", "HOST", "_", "SHLVL", "OLDPWD", "DISPLAY", "XAUTHORITY", "TERM_SESSION_ID")
)
# These would make the staged interpreter look outside its prefix.
PYTHON_NAMES = (
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PYTHONUSERBASE",
    "PYTHONEXECUTABLE",
    "PYTHONSAFEPATH",
    "__PYVENV_LAUNCHER__",
)
PATH_LISTS = ("LD_LIBRARY_PATH", "LIBRARY_PATH", "CPATH", "PKG_CONFIG_PATH", "MANPATH", "XDG_DATA_DIRS")


def of_another_job(name: str) -> bool:
    """Whether a variable belongs to the job that a submit may run in, and must not reach the one submitted.

    SLURM_CONF tells where Slurm is; it stays. So do the two that a user of mpiboot sets.
    """
    if name.startswith(("MPIBOOT_", "DASK_SCHEDULER_ADDRESS", "DASK_DISTRIBUTED__COMM__TLS__")):
        return name not in (HOME_VARIABLE, STAGE_ROOT_VARIABLE)
    if name.startswith("DASK_DISTRIBUTED__") and name.endswith("__PRELOAD"):
        return True
    return name != "SLURM_CONF" and name.startswith(("SLURM_", *LAUNCH_PREFIXES))


def active_prefix(environ: Mapping[str, str], running: str, base: str) -> Path:
    """The active environment: the one this Python runs in, else the one that a shell has activated.

    Raises
    ------
    EnvironmentUnfitError
        Neither is there.
    """
    if environ.get("MPIBOOT_STAGED_PREFIX") == running:  # inside a job: its copy is on its nodes alone
        return Path(environ["MPIBOOT_SOURCE_PREFIX"])
    if running != base or is_conda(Path(running)):
        return Path(running)
    if active := environ.get("VIRTUAL_ENV") or environ.get("CONDA_PREFIX"):
        return Path(active)
    raise EnvironmentUnfitError(
        f"no environment is active ({running} is the system's Python). Activate one, or pass --env PREFIX"
    )


def check_environment(prefix: Path) -> None:
    """An environment that a boot can use: refused here, before anything is packed or submitted.

    Raises
    ------
    EnvironmentUnfitError
        No such folder, no environment, or one that lacks a package; the message names what to install.
    """
    if not prefix.is_dir():
        raise EnvironmentUnfitError(f"--env {prefix}: there is no such folder")
    if not kind_of(prefix) or not os.access(prefix / "bin/python", os.X_OK):
        raise EnvironmentUnfitError(
            f"--env {prefix}: neither a conda environment (no conda-meta) nor a venv (no pyvenv.cfg) with a bin/python"
        )
    site = sorted(prefix.glob("lib/python3*/site-packages"))
    lacking = [
        package
        for package, module in (
            ("mpiboot", "mpiboot"),
            ("dask-mpi", "dask_mpi"),
            ("mpi4py", "mpi4py"),
            ("distributed", "distributed"),
        )
        # An editable install leaves a .dist-info, and no folder of its name.
        if not any(
            [*folder.glob(f"{module}/__init__.py"), *folder.glob(f"{module}-*.dist-info")] for folder in site
        )
    ]
    if lacking:
        raise EnvironmentUnfitError(
            f"the environment {prefix} lacks {', '.join(lacking)}. "
            f"Type: {prefix}/bin/python -m pip install {' '.join(lacking)}"
        )


# Asked without MPI_Init, which has no place on a login node.
_MPI_LIBRARY = (
    "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
)


def check_mpi(prefix: Path) -> None:
    """That the environment's own mpirun, if it has one, starts ranks of the MPI library that its mpi4py loads.

    An environment without an mpirun is left to the job, where a site's module may bring both.

    Raises
    ------
    EnvironmentUnfitError
        They do not fit, or mpi4py finds no library; the message names the package to install.
    """
    if (prefix / "bin/mpirun").exists():
        mpi_of(prefix, prefix / "bin/mpirun")


def mpi_of(prefix: Path, mpirun: str | Path, environ: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Which MPI `mpirun` is of, and the library of it that the environment's mpi4py loads.

    Raises
    ------
    EnvironmentUnfitError
        They do not fit, or mpi4py finds no library; the message names the package to install.
    LaunchError
        The mpirun is of no MPI that is known.
    """
    python = prefix / "bin/python"
    mpi = launcher_mpi(_ask([os.fspath(mpirun), "--version"], environ))
    found = _ask([str(python), "-c", _MPI_LIBRARY], environ)
    if mpi != library_mpi(found):
        raise EnvironmentUnfitError(
            f"{mpirun} is the mpirun of {mpi}, and the mpi4py of {prefix} finds another MPI library:\n"
            f"  {found.strip()[-300:] or 'none'}\n"
            f"Type: {python} -m pip install --force-reinstall {PYPI_PACKAGES[mpi]}"
        )
    return mpi, found.splitlines()[0].partition(",")[0].strip("\0 ")


def _ask(command: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    """All that a command says; of one that cannot be run, why."""
    env = None if environ is None else dict(environ)
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout + done.stderr


def activation(prefix: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` after the `activate.d` scripts of a conda prefix, sourced in their order as conda does.

    Raises
    ------
    StageError
        bash could not be run, or ended the scripts early.
    """
    scripts = sorted((prefix / "etc/conda/activate.d").glob("*.sh"))
    if not scripts:
        return dict(environ)
    # Scripts test unset variables and print to stdout: neither may end this, nor get into what is read back.
    source = 'exec 3>&1 >&2; for script in "$@"; do . "$script"; done; env -0 >&3'
    command = ["bash", "-c", source, "activate", *map(str, scripts)]
    try:
        done = subprocess.run(command, env=dict(environ), capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StageError(
            f"the scripts in {prefix}/etc/conda/activate.d could not be sourced: {error}"
        ) from error
    if done.returncode:
        raise StageError(
            f"the scripts in {prefix}/etc/conda/activate.d ended with status {done.returncode}: "
            f"{os.fsdecode(done.stderr).strip()[-500:]}"
        )
    pairs = (entry.partition("=") for entry in os.fsdecode(done.stdout).split("\0") if entry)
    return {name: value for name, _, value in pairs}


def relocated(environ: Mapping[str, str], source: Path, prefix: Path) -> dict[str, str]:
    """`environ` with `prefix` active in the place of `source`; pure."""
    found = {name: value for name, value in environ.items() if name not in PYTHON_NAMES}
    kept = [part for part in found.get("PATH", os.defpath).split(":") if part and not _inside(part, source)]
    found["PATH"] = ":".join([str(prefix / "bin"), *kept])
    for name in PATH_LISTS:
        if name in found:
            found[name] = ":".join(
                str(prefix) + part[len(str(source)) :] if _inside(part, source) else part
                for part in found[name].split(":")
            )
    for name in ("CONDA_PREFIX", "VIRTUAL_ENV"):
        found.pop(name, None)
    found["CONDA_PREFIX" if is_conda(prefix) else "VIRTUAL_ENV"] = str(prefix)
    found["PYTHONNOUSERSITE"] = "1"
    return found


def _inside(path: str, folder: Path) -> bool:
    return path == str(folder) or path.startswith(f"{folder}/")


def asked_variables(items: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """`--env-var NAME` and `NAME=VALUE` as a dictionary.

    Raises
    ------
    UsageError
        NAME alone, and it is not set.
    """
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not name or not (equals or name in environ):
            raise UsageError(f"--env-var {item}: {name or 'the name'} is not set. Write --env-var NAME=VALUE")
        found[name] = value if equals else environ[name]
    return found


def login_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What a login would have set and `sbatch --export=NONE` may leave out: mpirun ends where HOME is not set."""
    user = pwd.getpwuid(os.getuid())
    usual = {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "PATH": os.defpath}
    return {name: value for name, value in usual.items() if not environ.get(name)}


def carried(environ: Mapping[str, str]) -> dict[str, str]:
    """What goes from the first node to every rank: all but what belongs to a host or a step."""
    return {
        name: value
        for name, value in environ.items()
        if name not in HOST_NAMES and not name.startswith(HOST_PREFIXES)
    }
