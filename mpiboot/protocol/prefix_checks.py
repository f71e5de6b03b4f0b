"""Finds the environment that the user means, and checks whether a job can run from it, before it is packed.

Client and boot import this module; it imports `envpack.common`, `common.mpi`, `protocol.rank_environment` and the errors.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from envpack.common.prefix import active_environment, kind_of, source_of
from mpiboot.common.mpi import PYPI_PACKAGES, launcher_mpi, library_mpi
from mpiboot.errors import EnvironmentUnfitError
from mpiboot.protocol.rank_environment import relocated

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
    prefix: Path, environ: Mapping[str, str], *, staged: bool = True, job_adds_packages: bool = False
) -> list[str]:
    """Refuse an environment that no job can run from.

    Whatever the environment's own Python finds counts, wherever it is.

    Parameters
    ----------
    prefix : Path
        The prefix that the user named, or the active one.
    environ : mapping
        The environment of the job.
    staged : bool
        Whether the environment is to be staged.
    job_adds_packages : bool
        Whether the job may find more packages than this process: the site's `setup` lines, or its job script, may add to
        PYTHONPATH.

    Returns
    -------
    list of str
        Warnings: which packages are missing here; and which lie outside of the prefix and of its base interpreter, and so
        are not staged.

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
    environ = relocated(environ, prefix, prefix)
    inside, folders = _find(prefix, PACKAGES, environ)
    if "mpiboot" in folders and not _in(folders["mpiboot"], inside):
        del folders["mpiboot"]  # the job script starts mpiboot with -I, which ignores PYTHONPATH
        folders |= _find(prefix, ["mpiboot"], environ, "-I")[1]
    lacking = [name for module, name in PACKAGES.items() if module not in folders]
    warnings = []
    if lacking:
        problem = f"the environment {prefix} lacks {', '.join(lacking)}"
        remedy = f"Type: {install_command(prefix, lacking)}"
        if "mpiboot" in lacking or not job_adds_packages:
            raise EnvironmentUnfitError(problem, remedy)
        warnings.append(f"{problem}, unless `setup` or the job script adds it in the job. {remedy}")
    outside: dict[str, list[str]] = {}
    for module, folder in folders.items():
        if staged and not _in(folder, inside):
            outside.setdefault(folder, []).append(PACKAGES[module])
    return warnings + [
        f"{', '.join(names)} in {folder} is outside of the environment: it is not staged, and every node reads it there"
        for folder, names in outside.items()
    ]


# Paths that are empty stand for the working directory, which a rank does not search. A folder without a module in it, as
# an uninstalled package may leave behind, has no origin.
_FIND = """
import json, os, sys
from importlib.util import find_spec
sys.path[:] = filter(None, sys.path)
specs = {name: find_spec(name) for name in sys.argv[1:]}
folders = {name: os.path.dirname(os.path.dirname(spec.origin)) for name, spec in specs.items() if spec and spec.origin}
print(json.dumps([[sys.prefix, sys.base_prefix], folders]))
"""


def _find(
    prefix: Path, modules: Collection[str], environ: Mapping[str, str], *flags: str
) -> tuple[list[str], dict[str, str]]:
    """Ask an environment's Python where it finds packages.

    Returns
    -------
    list of str
        The prefix, and that of its base interpreter.
    dict of str to str
        The folder that has the package, by the module's name; modules that are not found are absent.
    """
    command = [str(prefix / "bin/python"), *flags, "-c", _FIND, *modules]
    output = _output_of(command, environ)
    # A sitecustomize may print, too.
    answer = next((line for line in output.splitlines() if line.startswith('[["')), None)
    if answer is None:
        raise EnvironmentUnfitError(
            f"the environment's Python fails: {output.strip()[-500:]}",
            f"Try it by hand: {shlex.quote(command[0])} -c 'import json'",
        )
    inside, folders = json.loads(answer)
    return inside, folders


def _in(folder: str, prefixes: Sequence[str]) -> bool:
    """Return whether a folder lies below one of several prefixes, by whatever links."""
    path = os.path.realpath(folder)
    return any(Path(path).is_relative_to(os.path.realpath(prefix)) for prefix in prefixes)


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
    python = prefix / "bin/python"
    mpi = launcher_mpi(_output_of([os.fspath(mpirun), "--version"], environ))
    library = _output_of([str(python), "-c", _MPI_LIBRARY], environ)
    if mpi != library_mpi(library):
        raise EnvironmentUnfitError(
            f"{mpirun} is the mpirun of {mpi}, and the mpi4py of {prefix} loads another MPI library:\n"
            f"  {library.strip()[-300:] or 'none'}",
            f"Type: {install_command(prefix, ['--force-reinstall', PYPI_PACKAGES[mpi]])}",
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
