"""What a prefix, the root folder of an environment, is: conda or venv, a copy, the active one.

All rooms may import this module; it imports nothing of envpack.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

# The folder in a staged prefix that has a venv's base interpreter.
BASE_FOLDER = ".envpack-base"


def is_conda(prefix: Path) -> bool:
    """Tell whether a folder is a conda environment: conda keeps its records in `conda-meta`."""
    return (prefix / "conda-meta").is_dir()


def is_venv(prefix: Path) -> bool:
    """Tell whether a folder is a venv (PEP 405): it has a `pyvenv.cfg`."""
    return (prefix / "pyvenv.cfg").is_file()


def kind_of(prefix: Path) -> Literal["conda", "venv"] | None:
    """Return which kind of environment a folder is; None if it is neither."""
    return "conda" if is_conda(prefix) else "venv" if is_venv(prefix) else None


def active_environment(environ: Mapping[str, str], running: str, base: str) -> Path | None:
    """Return the environment that a command is meant for if none is named.

    It is the environment of the Python that runs the command, with two exceptions. The system's Python belongs to none:
    then it is the environment that the shell has activated. And a venv may have been activated over a conda environment:
    if the shell then finds the command in the conda environment, it is the venv.

    Parameters
    ----------
    environ : mapping
        The environment variables.
    running, base : str
        `sys.prefix` and `sys.base_prefix`.

    Returns
    -------
    Path or None
        The source prefix if the environment is a staged one. None if this is the system's Python, and no environment is
        activated.
    """
    venv, conda = environ.get("VIRTUAL_ENV"), environ.get("CONDA_PREFIX")
    path = environ.get("PATH", "").split(":")

    def place(prefix: str) -> int:
        folder = os.path.join(prefix, "bin")  # noqa: PTH118
        return path.index(folder) if folder in path else len(path)

    # The one that was activated last is first on the PATH.
    activated = min(filter(None, (venv, conda)), key=place, default=None)
    is_systems = running == base and not is_conda(Path(running))
    is_below_venv = conda and activated == venv and os.path.realpath(running) == os.path.realpath(conda)
    chosen = activated if is_systems or is_below_venv else running
    return source_of(Path(chosen)) if chosen else None


def source_of(prefix: Path) -> Path:
    """Return the prefix that a staged prefix is a copy of; any other prefix is returned as it is."""
    try:
        marker = json.loads((prefix / ".envpack" / "marker.json").read_bytes())
        # A copy of a staged prefix elsewhere is an environment of its own.
        return Path(marker["source"]) if prefix.samefile(marker["prefix"]) else prefix
    except (OSError, ValueError, LookupError, TypeError):
        return prefix
