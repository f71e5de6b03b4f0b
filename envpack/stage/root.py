"""The staging root on a node: a folder of ours in a place where others write too.

    <root>/mpiboot-<uid>/                      0700, ours, no symlink: else refused
        <name>-<pack id>/                      a staged prefix; whoever uses it holds a shared lock on the folder
        .lock-<name>-<pack id>                 held by the one stager at work on it
        .tmp-…/                                being written or removed; locked while its owner lives

Locks are `flock`s: the kernel drops them with their last process, so what is not locked is proven dead.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.places import host_name, user_folder
from envpack.common.trust import ownership_fault
from envpack.errors import EnvpackError, NoSpaceError, StageFailedError, StageRootError

if TYPE_CHECKING:
    from envpack.archive.index import Index
    from envpack.common.places import StrPath


def open_root(root: StrPath) -> Path:
    """Make and check our folder in a staging root.

    Parameters
    ----------
    root : str or os.PathLike
        An existing folder, local to the node.

    Returns
    -------
    Path
        `<root>/mpiboot-<uid>`: a real folder, ours, 0700, on a file system that can hold programs.

    Raises
    ------
    StageRootError
        With the path, the host, and what is wrong with it.
    """
    folder = user_folder(root)
    root = folder.parent
    try:
        info = root.stat()
        limits = os.statvfs(root)
    except OSError as exc:
        raise StageRootError(_root_message(root, exc.strerror or str(exc))) from exc
    if not stat.S_ISDIR(info.st_mode):
        raise StageRootError(_root_message(root, "it is not a folder"))
    if info.st_mode & stat.S_IWOTH and not info.st_mode & stat.S_ISVTX:
        raise StageRootError(
            _root_message(root, "everybody may replace files there (mode without the sticky bit)")
        )
    if limits.f_flag & os.ST_RDONLY:
        raise StageRootError(_root_message(root, "it is mounted read-only"))
    if limits.f_flag & os.ST_NOEXEC:
        raise StageRootError(_root_message(root, "it is mounted noexec: no program could be started from it"))
    try:
        folder.mkdir(mode=0o700)
        # Whatever the umask says.
        folder.chmod(0o700)
    except FileExistsError:
        pass
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"cannot make {folder} on {host_name()}: {exc.strerror}") from exc
        raise StageRootError(_root_message(root, f"cannot make {folder.name}: {exc.strerror}")) from exc
    check_own_folder(folder)
    return folder


def check_own_folder(folder: Path) -> None:
    """Raise `StageRootError` unless a folder is real, ours, and closed to others."""
    try:
        info = folder.lstat()
    except OSError as exc:
        raise StageRootError(_root_message(folder, exc.strerror or str(exc))) from exc
    if fault := ownership_fault(info, "directory"):
        mine = stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()
        raise StageRootError(_root_message(folder, f"it {fault}{'; chmod 700 it' if mine else ''}"))


def _root_message(path: StrPath, why: str) -> str:
    return (
        f"cannot stage below {path} on {host_name()}: {why}; put it right, or choose another folder that is local "
        "to the nodes with --root or MPIBOOT_STAGE_ROOT"
    )


def check_space(folder: Path, index: Index) -> None:
    """Raise `NoSpaceError` unless a copy's bytes and files fit: said before the first is written."""
    limits = os.statvfs(folder)
    block = limits.f_frsize or 4096
    # Spans no fewer blocks than bytes; each folder takes one as well.
    need = sum((size + block - 1) // block for size in index.sizes) + len(index.folders)
    if need > limits.f_bavail:
        raise NoSpaceError(
            f"no space below {folder} on {host_name()}: the copy takes {need * block / 1e6:.0f} MB, "
            f"{limits.f_bavail * block / 1e6:.0f} MB are free; "
            "run envpack gc there, or choose another staging root (--root, MPIBOOT_STAGE_ROOT)"
        )
    # Some file systems count no inodes, and say 0 of 0.
    if limits.f_files and len(index) > limits.f_favail:
        raise NoSpaceError(
            f"no inodes below {folder} on {host_name()}: the copy has {len(index)} files, {limits.f_favail} are free; "
            "run envpack gc there, or choose another staging root (--root, MPIBOOT_STAGE_ROOT)"
        )


def write_failed(what: StrPath, exc: OSError) -> EnvpackError:
    """Return the error that an OSError while writing a copy means."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(
            f"no space left on {host_name()} while writing {what}: {exc.strerror}; run envpack gc there, or choose "
            "another --root"
        )
    return StageFailedError(f"cannot write {exc.filename or what} on {host_name()}: {exc.strerror}")
