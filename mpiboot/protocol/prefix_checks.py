"""Finds the environment that the user means, and checks whether a job can run from it, before it is packed.

Client and boot import this module; it imports `envpack.common`, `common.mpi`, `protocol.variables` and the errors.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from envpack.common.prefix import active_environment, kind_of
from mpiboot.common.mpi import PYPI_PACKAGES, launcher_mpi, library_mpi
from mpiboot.errors import EnvironmentUnfitError
from mpiboot.protocol.variables import (
    SOURCE_PREFIX_VARIABLE,
    STAGED_PREFIX_VARIABLE,
)


def active_prefix(
    environ: Mapping[str, str] = os.environ, running: str = sys.prefix, base: str = sys.base_prefix
) -> Path:
    """Find the active environment: the one this Python runs in, else the one that the shell has activated.

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
    if environ.get(STAGED_PREFIX_VARIABLE) == running:
        return Path(environ[SOURCE_PREFIX_VARIABLE])
    if active := active_environment(environ, running, base):
        return active
    raise EnvironmentUnfitError(
        f"no environment is active: {running} is the system's Python", "Activate one, or pass --env PREFIX"
    )


def check_environment(prefix: Path) -> None:
    """Refuse an environment that no job can run from.

    Parameters
    ----------
    prefix : Path
        The prefix that the user named, or the active one.

    Raises
    ------
    EnvironmentUnfitError
        There is no such folder, it is no environment, or it lacks a package; the message names what to install.
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
    site = sorted(prefix.glob("lib/python3*/site-packages"))
    lacking = [
        package
        for package, module in (
            ("mpiboot", "mpiboot"),
            ("dask-mpi", "dask_mpi"),
            ("mpi4py", "mpi4py"),
            ("distributed", "distributed"),
        )
        # An editable install has a .dist-info, and no folder of the package's name.
        if not any(
            [*folder.glob(f"{module}/__init__.py"), *folder.glob(f"{module}-*.dist-info")] for folder in site
        )
    ]
    if lacking:
        raise EnvironmentUnfitError(
            f"the environment {prefix} lacks {', '.join(lacking)}",
            f"Type: {shlex.quote(f'{prefix}/bin/python')} -m pip install {' '.join(lacking)}",
        )


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
    python = prefix / "bin/python"
    mpi = launcher_mpi(_output_of([os.fspath(mpirun), "--version"], environ))
    library = _output_of([str(python), "-c", _MPI_LIBRARY], environ)
    if mpi != library_mpi(library):
        raise EnvironmentUnfitError(
            f"{mpirun} is the mpirun of {mpi}, and the mpi4py of {prefix} loads another MPI library:\n"
            f"  {library.strip()[-300:] or 'none'}",
            f"Type: {shlex.quote(str(python))} -m pip install --force-reinstall {PYPI_PACKAGES[mpi]}",
        )
    return mpi, library.splitlines()[0].partition(",")[0].strip("\0 ")


def _output_of(command: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    """Return the output of a command, or the reason why it could not be run."""
    env = None if environ is None else dict(environ)
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout + done.stderr
