"""Finds the environment that the user means, and checks whether a job can run from it, before it is packed.

Client and boot import this module; it imports `envpack.common`, `common.logs`, `common.mpi`, `protocol.variables` and the
errors.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from envpack.common.prefix import active_environment, kind_of, source_of
from mpiboot.common.logs import without_tracebacks
from mpiboot.common.mpi import PYPI_PACKAGES, launcher_environment, launcher_mpi, library_mpi
from mpiboot.errors import EnvironmentUnfitError
from mpiboot.protocol.variables import PYTHON_PATH

# What a job needs in the environment: the modules, and the packages that have them.
PACKAGES = {"mpiboot": "mpiboot", "dask_mpi": "dask-mpi", "mpi4py": "mpi4py", "distributed": "distributed"}


def active_prefix(
    environ: Mapping[str, str] = os.environ, running: str = sys.prefix, base: str = sys.base_prefix
) -> Path:
    """Return the active environment, by `envpack.common.prefix.active_environment`.

    Parameters
    ----------
    environ : mapping
        Environment variables.
    running, base : str
        Prefix of this Python, and of the Python that a venv was made with (`sys.prefix`, `sys.base_prefix`).

    Returns
    -------
    Path
        The environment's prefix; in a job, the source prefix, since the staged prefix is only on the job's nodes.

    Raises
    ------
    EnvironmentUnfitError
        No environment is active.
    """
    if active := active_environment(environ, running, base):
        return active
    raise EnvironmentUnfitError(
        f"no environment is active: {running} is the system's Python", "Activate one, or pass --env PREFIX"
    )


def check_environment(
    prefix: Path, environ: Mapping[str, str], *, job_adds_packages: bool = False
) -> str | None:
    """Refuse an environment that no job can run from.

    Whatever the environment's own Python finds counts, wherever it is; packing warns of what it does not pack.

    Parameters
    ----------
    prefix : Path
        The prefix that the user named, or the active one.
    environ : mapping
        The environment of the job.
    job_adds_packages : bool
        Whether the job may find more packages than this process: the site's `setup` lines, or its job script, may add to
        PYTHONPATH. A package that is lacking is then a warning.

    Returns
    -------
    str or None
        The warning, if there is one.

    Raises
    ------
    EnvironmentUnfitError
        There is no such folder, it is no environment, its Python fails, or it lacks a package; the message names what to
        install.
    """
    if not prefix.is_dir():
        raise EnvironmentUnfitError(
            f"--env {prefix}: there is no such folder", "Pass the prefix of an environment"
        )
    if not kind_of(prefix) or not os.access(prefix / "bin/python", os.X_OK):
        raise EnvironmentUnfitError(
            f"--env {prefix}: neither a conda environment (no conda-meta) nor a venv (no pyvenv.cfg) with a bin/python",
            "Pass the prefix of an environment",
        )
    lacking = lacking_packages(prefix, environ.get(PYTHON_PATH, ""))
    if not lacking:
        return None
    problem = f"the environment {prefix} lacks {', '.join(lacking)}"
    remedy = f"Type: {install_command(prefix, lacking)}"
    if "mpiboot" in lacking or not job_adds_packages:
        raise EnvironmentUnfitError(problem, remedy)
    return f"{problem}, unless `setup` or the job script adds it in the job. {remedy}"


# The job script starts mpiboot with -I, without PYTHONPATH; the ranks have it. A folder without a module in it, which an
# uninstalled package may have left, has no origin.
_FIND = """
import sys
from importlib.util import find_spec
names = sys.argv[2].split()
found = [name for name in names if name == "mpiboot" and (spec := find_spec(name)) and spec.origin]
sys.path[:0] = sys.argv[1].split(":") if sys.argv[1] else []
found += [name for name in names if name != "mpiboot" and (spec := find_spec(name)) and spec.origin]
print("mpiboot found", *found)
"""


def lacking_packages(prefix: Path, python_path: str) -> list[str]:
    """Return the packages that an environment's Python does not find in a job.

    Parameters
    ----------
    prefix : Path
        The environment.
    python_path : str
        PYTHONPATH.

    Raises
    ------
    EnvironmentUnfitError
        The Python fails.
    """
    command = [str(prefix / "bin/python"), "-I", "-c", _FIND, python_path, " ".join(PACKAGES)]
    output = _output_of(command)
    # A sitecustomize may print, too.
    for line in output.splitlines():
        if line.startswith("mpiboot found"):
            found = line.split()[2:]
            return [package for module, package in PACKAGES.items() if module not in found]
    raise EnvironmentUnfitError(
        f"the environment's Python fails: {output.strip()[-500:]}",
        f"Try it by hand: {shlex.quote(command[0])} -c 'import json'",
    )


def install_command(prefix: Path, packages: Sequence[str]) -> str:
    """Return a shell command that installs packages into an environment, or into the source of a staged one."""
    prefix = source_of(prefix)
    python = shlex.quote(str(prefix / "bin/python"))
    names = " ".join(packages)
    # -I: pip, too, must not count what lies in PYTHONPATH or in the user's site-packages.
    if (prefix / "bin/pip").exists():
        return f"{python} -I -m pip install {names}"
    if shutil.which("uv"):
        return f"uv pip install --python {python} {names}"
    return f"{python} -I -m ensurepip && {python} -I -m pip install {names}"


# This does not call MPI_Init, which login nodes often forbid.
_MPI_LIBRARY = (
    "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
)


def check_mpi(prefix: Path) -> None:
    """Refuse an environment whose own mpirun belongs to another MPI than the library that its mpi4py loads.

    An environment without an mpirun is accepted: in the job, a site's module may provide both.

    Parameters
    ----------
    prefix : Path
        The environment's prefix.

    Raises
    ------
    EnvironmentUnfitError, LaunchError
        As raised by `mpi_of`.
    """
    if (prefix / "bin/mpirun").exists():
        mpi_of(prefix, prefix / "bin/mpirun")


def mpi_of(prefix: Path, mpirun: str | Path, environ: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Return the MPI of an mpirun, after checking that an environment's mpi4py loads a library of the same MPI.

    Parameters
    ----------
    prefix : Path
        The environment's prefix.
    mpirun : path
        The launcher.
    environ : mapping, optional
        Environment of both programs (default: this process's).

    Returns
    -------
    tuple[str, str]
        `openmpi`, `mpich` or `intelmpi`; and the library's own name, such as `Open MPI v5.0.11`.

    Raises
    ------
    EnvironmentUnfitError
        mpi4py loads another MPI, or none; the message names the package to install.
    LaunchError
        The mpirun belongs to no MPI that mpiboot knows.
    """
    launcher, variables = os.fspath(mpirun), os.environ if environ is None else environ
    mpi = launcher_mpi(_output_of([launcher, "--version"], launcher_environment(launcher, variables)))
    library = loaded_library(prefix, environ)
    if mpi != library_mpi(library):
        raise EnvironmentUnfitError(
            f"{mpirun} is the mpirun of {mpi}, and the mpi4py of {prefix} loads another MPI library:\n"
            f"  {library.strip()[-300:] or 'none'}",
            f"Type: {install_command(prefix, ['--force-reinstall', PYPI_PACKAGES[mpi]])}",
        )
    return mpi, library.splitlines()[0].partition(",")[0].strip("\0 ")


def loaded_library(prefix: Path, environ: Mapping[str, str] | None = None) -> str:
    """Return what the MPI library that an environment's mpi4py loads says of itself, or why it loads none."""
    return _output_of([str(prefix / "bin/python"), "-c", _MPI_LIBRARY], environ)


def _output_of(command: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    """Return the output of a command, or the reason why it could not be run. Messages show it: no tracebacks."""
    env = None if environ is None else dict(environ)
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, errors="replace", timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout + without_tracebacks(done.stderr)
