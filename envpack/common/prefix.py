"""What a prefix, the root folder of an environment, is: a conda environment, a venv, or neither."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path


def is_conda(prefix: Path) -> bool:
    """Tell whether a folder is a conda environment: conda keeps its records in `conda-meta`."""
    return (prefix / "conda-meta").is_dir()


def is_venv(prefix: Path) -> bool:
    """Tell whether a folder is a venv (PEP 405): it has a `pyvenv.cfg`."""
    return (prefix / "pyvenv.cfg").is_file()


def kind_of(prefix: Path) -> Literal["conda", "venv"] | None:
    """Return which kind of environment a folder is; None if it is neither."""
    return "conda" if is_conda(prefix) else "venv" if is_venv(prefix) else None
