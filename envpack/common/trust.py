"""Tell whether a file or directory belongs to this user alone, from its `lstat` or `fstat` result.

Callers raise the error that fits them. Imported on nodes, before anything is written there.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from envpack.common.places import StrPath


def ownership_fault(
    status: os.stat_result, kind: Literal["directory", "file"], forbidden: int = 0o077
) -> str | None:
    """Say why something is not this user's alone.

    Parameters
    ----------
    status : os.stat_result
        From `lstat`, or `fstat` of what was opened without following links.
    kind : {"directory", "file"}
        What it must be.
    forbidden : int, default 0o077
        Bits that its mode must not have.

    Returns
    -------
    str or None
        The end of a sentence that begins with "it", such as "is a symbolic link"; None if nothing is wrong.
    """
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not (stat.S_ISDIR if kind == "directory" else stat.S_ISREG)(status.st_mode):
        return f"is not a {'directory' if kind == 'directory' else 'regular file'}"
    if status.st_uid != os.geteuid():
        return f"belongs to {user_name(status.st_uid)}, not to {user_name(os.geteuid())}"
    if status.st_mode & forbidden:
        return f"is open to others (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def make_private_folder(path: StrPath) -> None:
    """Make a folder and the missing ones above it, all of mode 0700, whatever the umask.

    `Path.mkdir` gives only the last folder its mode, and subtracts the umask.

    Parameters
    ----------
    path : str or os.PathLike
        The folder; one that exists keeps its mode.

    Raises
    ------
    OSError
        A folder could not be made.
    """
    path = Path(path)
    if path.is_dir():
        return
    make_private_folder(path.parent)
    with contextlib.suppress(FileExistsError):  # another process was faster
        path.mkdir(mode=0o700)
        path.chmod(0o700)


def user_name(uid: int) -> str:
    """Return `name (uid N)`, or `uid N` if the user database has no such user."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
