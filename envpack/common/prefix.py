"""What a prefix, the root folder of an environment, is: a conda environment, a venv, or neither."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    """Return the active environment: the one this Python belongs to, else the one that a shell has activated.

    Parameters
    ----------
    environ : mapping
        The environment variables.
    running, base : str
        `sys.prefix` and `sys.base_prefix`.

    Returns
    -------
    Path or None
        None if this is the system's Python, and no environment is activated.
    """
    if running != base or is_conda(Path(running)):
        return Path(running)
    active = environ.get("VIRTUAL_ENV") or environ.get("CONDA_PREFIX")
    return Path(active) if active else None
