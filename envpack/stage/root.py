"""The staging root on a node: a folder of ours in a place where others write too.

    <root>/mpiboot-<uid>/                      0700, ours, no symlink: else refused
        <name>-<pack id>/                      a staged prefix; whoever uses it holds a shared lock on the folder
        .lock-<name>-<pack id>                 held by the one stager at work on it
        .tmp-…/                                being written or removed; locked while its owner lives

Locks are `flock`s: the kernel drops them with their last process, so what is not locked is proven dead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.locks import open_folder, open_lock_file, try_lock
from envpack.common.places import host_name, user_folder
from envpack.common.trust import ownership_fault
from envpack.errors import EnvpackError, NoSpaceError, StageFailedError, StageRootError

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def lock_stager(folder: Path, stage_name: str, timeout_s: float) -> int:
    """Become the one stager of a staged prefix; wait while another is at work.

    Returns
    -------
    int
        The lock's file descriptor; closing it gives the lock back.
    """
    path = folder / f".lock-{stage_name}"
    deadline = time.monotonic() + timeout_s
    while True:
        fd = open_lock_file(path)
        if try_lock(fd, path):
            return fd
        os.close(fd)
        if time.monotonic() > deadline:
            raise StageFailedError(
                f"another stager on {host_name()} has held {path} for {timeout_s:.0f} s: it is alive but does not "
                f"finish; find it with: fuser {path}"
            )
        time.sleep(0.02)


def make_temporary(folder: Path, stage_name: str) -> tuple[Path, int]:
    """Make a folder to write to, locked for as long as this process lives."""
    while True:
        path = folder / f".tmp-{stage_name}-{os.getpid()}-{os.urandom(4).hex()}"
        path.mkdir(mode=0o700)
        try:
            fd = open_folder(path)
        except FileNotFoundError:
            continue
        if try_lock(fd, path):
            return path, fd
        # A sweeper came between mkdir and lock; it removes the folder.
        os.close(fd)


def put_aside(path: Path) -> Path:
    """Rename a folder so that only sweepers see it."""
    aside = path.parent / f".tmp-old-{os.getpid()}-{os.urandom(4).hex()}"
    path.rename(aside)
    return aside


def temporaries(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(".tmp-")]
    for name in names:
        yield folder / name


def sweep(folder: Path) -> list[Path]:
    """Remove what dead stagers left; what a live one holds is locked and stays."""
    removed = []
    for path in temporaries(folder):
        try:
            fd = open_folder(path)
        except OSError:
            continue
        try:
            if try_lock(fd, path):
                remove_tree(path)
                removed.append(path)
        finally:
            os.close(fd)
    return removed


def remove_tree(path: StrPath) -> None:
    """Remove a folder of ours and all in it, read-only folders too; follows no symlink."""
    _remove_tree(os.fsencode(path))


def _remove_tree(path: bytes) -> None:
    try:
        _empty(path)
    except PermissionError:
        os.chmod(path, 0o700)  # noqa: PTH101
        _empty(path)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)  # noqa: PTH106


def _empty(folder: bytes) -> None:
    try:
        with os.scandir(folder) as entries:
            found = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except FileNotFoundError:
        return
    for path, is_folder in found:
        if is_folder:
            _remove_tree(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108


def write_failed(what: StrPath, exc: OSError) -> EnvpackError:
    """Return the error that an OSError while writing a copy means."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(
            f"no space left on {host_name()} while writing {what}: {exc.strerror}; run envpack gc there, or choose "
            "another --root"
        )
    return StageFailedError(f"cannot write {exc.filename or what} on {host_name()}: {exc.strerror}")
