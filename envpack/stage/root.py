"""The staging root on a node: a folder of this user, in a place where others write too; is it safe, and has it room.

<root>/mpiboot-<uid>/                      0700, owned by this user, no symlink; anything else is refused
    <name>-<pack id>/                      a staged prefix; its users hold a shared lock on this folder
    .lock-<name>-<pack id>                 locked by the one stager that works on that staged prefix
    .tmp-…/                                being written or removed; locked while its owner lives
    .jobs/                                 mpiboot's
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.places import STAGE_ROOT_VARIABLE, host_name, user_folder
from envpack.common.trust import ownership_fault
from envpack.errors import EnvpackError, NoSpaceError, StageFailedError, StageRootError

if TYPE_CHECKING:
    from envpack.archive.index import Index
    from envpack.common.places import StrPath

CHOOSE_ANOTHER = f"Choose a folder that is local to the nodes with --root or {STAGE_ROOT_VARIABLE}"
MAKE_ROOM = f"Run envpack gc there, or choose another staging root with --root or {STAGE_ROOT_VARIABLE}"


def open_root(root: StrPath) -> Path:
    """Make this user's folder in a staging root, if need be, and check it.

    Parameters
    ----------
    root : str or os.PathLike
        An existing folder, local to the node.

    Returns
    -------
    Path
        `<root>/mpiboot-<uid>`: a real folder, owned by this user, 0700, on a file system that can hold programs.

    Raises
    ------
    StageRootError
        The root is missing, not safe, read-only, or mounted noexec.
    NoSpaceError
        The folder cannot be made for want of space.
    """
    folder = user_folder(root)
    root = folder.parent
    try:
        info = root.stat()
        limits = os.statvfs(root)
    except OSError as exc:
        raise _refused(root, exc.strerror or str(exc)) from exc
    if not stat.S_ISDIR(info.st_mode):
        raise _refused(root, "it is not a directory")
    if info.st_mode & stat.S_IWOTH and not info.st_mode & stat.S_ISVTX:
        raise _refused(root, "everybody may replace files there (mode without the sticky bit)")
    if limits.f_flag & os.ST_RDONLY:
        raise _refused(root, "it is mounted read-only")
    if limits.f_flag & os.ST_NOEXEC:
        raise _refused(root, "it is mounted noexec, so no program can start from it")
    try:
        folder.mkdir(mode=0o700)
        # The umask may have taken bits of the mode.
        folder.chmod(0o700)
    except FileExistsError:
        pass
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"cannot make {folder} on {host_name()}: {exc.strerror}", CHOOSE_ANOTHER
            ) from exc
        raise _refused(root, f"cannot make {folder.name}: {exc.strerror}") from exc
    check_user_folder(folder)
    return folder


def check_user_folder(folder: Path) -> None:
    """Raise `StageRootError` unless a folder is a real one, owned by this user, and closed to others."""
    try:
        info = folder.lstat()
    except OSError as exc:
        raise _refused(folder, exc.strerror or str(exc)) from exc
    if fault := ownership_fault(info, "directory"):
        from shlex import quote

        mine = stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()
        remedy = f"If you trust its content: chmod 700 {quote(str(folder))}" if mine else CHOOSE_ANOTHER
        raise _refused(folder, f"it {fault}", remedy)


def _refused(path: StrPath, why: str, remedy: str = CHOOSE_ANOTHER) -> StageRootError:
    return StageRootError(f"cannot stage below {path} on {host_name()}: {why}", remedy)


def check_space(folder: Path, index: Index) -> None:
    """Raise `NoSpaceError` unless a copy's bytes and files fit, before the first of them is written.

    Parameters
    ----------
    folder : Path
        A folder on the file system that is to hold the copy.
    index : Index
        The archive's index.
    """
    limits = os.statvfs(folder)
    block = limits.f_frsize or 4096
    # A file takes whole blocks; each folder takes one as well.
    need = sum((size + block - 1) // block for size in index.sizes) + len(index.folders)
    if need > limits.f_bavail:
        raise NoSpaceError(
            f"no space below {folder} on {host_name()}: the copy takes {need * block / 1e6:.0f} MB, "
            f"{limits.f_bavail * block / 1e6:.0f} MB are free",
            MAKE_ROOM,
        )
    # Some file systems do not count inodes, and report 0 of 0.
    if limits.f_files and len(index) > limits.f_favail:
        raise NoSpaceError(
            f"no inodes below {folder} on {host_name()}: the copy has {len(index)} files, {limits.f_favail} are free",
            MAKE_ROOM,
        )


def write_error(what: StrPath, exc: OSError) -> EnvpackError:
    """Return the error to raise for an `OSError` while a copy is written.

    Parameters
    ----------
    what : str or os.PathLike
        What was being written, unless the `OSError` names a file.
    exc : OSError
        The failure.
    """
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(f"no space left on {host_name()} while writing {what}: {exc.strerror}", MAKE_ROOM)
    return StageFailedError(
        f"cannot write {exc.filename or what} on {host_name()}: {exc.strerror}", CHOOSE_ANOTHER
    )
