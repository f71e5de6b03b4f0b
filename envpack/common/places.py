"""Where things lie: the home on the shared file system, and the user's folder below a node's staging root.

This module owns the names of the environment variables that users set for them. mpiboot uses the same places.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    StrPath = str | os.PathLike[str]

HOME_VARIABLE = "MPIBOOT_HOME"
STAGE_ROOT_VARIABLE = "MPIBOOT_STAGE_ROOT"
DEFAULT_STAGE_ROOT = "/tmp"
# Folders, separated by colons, that the user trusts although others can write to them.
TRUSTED_FOLDERS_VARIABLE = "MPIBOOT_TRUSTED_FOLDERS"


def default_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of archives and job directories: `$MPIBOOT_HOME`, or `~/.mpiboot`.

    Raises
    ------
    MalformedValueError
        The variable holds no absolute path, or the user has no home folder.
    """
    # Imported here, as an agent starts with this module and needs no such path.
    from envpack.common.paths import expand, path_of_variable

    return Path(path_of_variable(HOME_VARIABLE, environ) or expand("~/.mpiboot", environ))


def default_stage_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the staging root: `$MPIBOOT_STAGE_ROOT`, or `/tmp`.

    Raises
    ------
    MalformedValueError
        The variable holds no absolute path.
    """
    from envpack.common.paths import path_of_variable

    return Path(path_of_variable(STAGE_ROOT_VARIABLE, environ) or DEFAULT_STAGE_ROOT)


def user_folder(root: StrPath) -> Path:
    """Return `<root>/mpiboot-<uid>`, which holds all that is written on a node; it may not exist yet."""
    return Path(os.path.abspath(root), f"mpiboot-{os.geteuid()}")  # noqa: PTH100


def staged_prefix(root_folder: StrPath | None, pack_id: str, name: str) -> Path:
    """Return where an archive is staged below a root; the same path on every node.

    Parameters
    ----------
    root_folder : str or os.PathLike, optional
        The staging root (default MPIBOOT_STAGE_ROOT, then /tmp).
    pack_id : str
        64 hexadecimal digits.
    name : str
        The environment's name, as the archive's index has it.

    Returns
    -------
    Path
        `<root>/mpiboot-<uid>/<name>-<16 digits of pack_id>`
    """
    return user_folder(root_folder or default_stage_root()) / f"{name}-{pack_id[:16]}"


def host_name() -> str:
    """Return this host's name, for messages."""
    return os.uname().nodename
