"""The staging root on a node: a folder of this user, in a place where others write too, and what errors there mean.

<root>/mpiboot-<uid>/                      0700, owned by this user, no symlink; anything else is refused
    <name>-<pack id>/                      a staged prefix; its users hold a shared lock on this folder
    .lock-<name>-<pack id>                 locked by the one stager that works on that staged prefix
    .tmp-…/                                being written or removed; locked while its owner lives
    .jobs/                                 mpiboot's
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.places import STAGE_ROOT_VARIABLE, host_name, user_folder
from envpack.common.trust import ownership_fault
from envpack.errors import EnvpackError, NoSpaceError, StageFailedError, StageRootError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envpack.common.places import StrPath

CHOOSE_ANOTHER = f"Choose a folder that is local to the nodes with --root or {STAGE_ROOT_VARIABLE}"


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


# What to do about an error, by its number; the rest may come from a file system that is broken or full.
_REMEDIES = {
    errno.EACCES: "Check whom it belongs to: ls -ld {folder}",
    errno.EPERM: "Check whom it belongs to, and whether it is immutable: ls -ld {folder}; lsattr -d {folder}",
    errno.EFBIG: "Raise the limit on the size of files: ulimit -f unlimited",
    errno.EMFILE: "Raise the limit on open files: ulimit -n 4096",
    errno.ENAMETOOLONG: f"Choose a staging root with a shorter path: --root or {STAGE_ROOT_VARIABLE}",
    errno.ENOENT: "Something has removed it meanwhile: stage again",
    errno.ENOMEM: "Ask for more memory per node, or stage with fewer --jobs",
    errno.ESTALE: "Its file server has restarted or lost it: stage again",
}


@contextlib.contextmanager
def named_errors(folder: StrPath, doing: str = "stage in") -> Iterator[None]:
    """Turn every `OSError` into an `EnvpackError` that names host, path and remedy.

    Parameters
    ----------
    folder : str or os.PathLike
        The folder that is worked on, for errors that name no file or a relative path.
    doing : str, default "stage in"
        What is done with it.
    """
    try:
        yield
    except OSError as exc:
        raise _named_error(folder, doing, exc) from exc


def _named_error(folder: StrPath, doing: str, exc: OSError) -> EnvpackError:
    from shlex import quote

    name = exc.filename if isinstance(exc.filename, str | bytes) else ""
    path = os.path.join(folder, os.fsdecode(name)).rstrip("/")  # noqa: PTH118
    problem = f"cannot {doing} {folder} on {host_name()}: {path}: {exc.strerror or exc}"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(problem, f"Choose a folder with more room: --root or {STAGE_ROOT_VARIABLE}")
    if exc.errno == errno.EROFS:
        return StageRootError(problem, CHOOSE_ANOTHER)
    remedy = _REMEDIES.get(exc.errno or 0, CHOOSE_ANOTHER)
    return StageFailedError(problem, remedy.format(folder=quote(os.fspath(folder))))
