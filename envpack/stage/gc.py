"""Room in a staging root: is it enough, what do stages take, and which ones may go.

`envpack gc` removes stages that no process uses, by the time since their last use, or down to a size; the stager removes
such stages if a copy does not fit.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from envpack.common.locks import open_folder, open_lock_file, try_lock
from envpack.common.places import STAGE_ROOT_VARIABLE, default_stage_root, host_name, user_folder
from envpack.errors import NoSpaceError, StageRootError
from envpack.stage import marker, root, temporaries

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from envpack.archive.index import Index
    from envpack.common.places import StrPath

# Anything else in the user's folder is not envpack's to remove.
_STAGE_NAME = re.compile(r"[^.].*-[0-9a-f]{16}")
# A stage this fresh may belong to a job whose first worker, which will lock it, is still starting.
FRESH_S = 60.0


def gc(
    root_folder: StrPath | None = None,
    *,
    older_than_s: float | None = None,
    max_size_bytes: int | None = None,
) -> list[Path]:
    """Remove staged prefixes that no process uses, and temporary folders of dead stagers.

    With neither `older_than_s` nor `max_size_bytes`, all staged prefixes go that no process uses. What cannot be removed
    stays.

    Parameters
    ----------
    root_folder : str or os.PathLike, optional
        The staging root (default: MPIBOOT_STAGE_ROOT, then /tmp).
    older_than_s : float, optional
        Remove those that no stager has made or reused for longer than this, in seconds.
    max_size_bytes : int, optional
        Remove the longest unused ones until the rest takes no more than this, in bytes.

    Returns
    -------
    list[Path]
        The folders that were removed.

    Raises
    ------
    StageRootError
        The user's folder in the staging root does not belong to this user alone.
    StageFailedError
        The folder cannot be read.
    """
    folder = user_folder(root_folder or default_stage_root())
    with root.named_errors(folder, "remove stages in"):
        if not folder.exists() and not folder.is_symlink():
            return []
        root.check_user_folder(folder)
        removed = temporaries.sweep_temporaries(folder)
        found = stages(folder)
        sizes = _disk_bytes(prefix for _, prefix in reversed(found))
        now = time.time()
        total = sum(sizes.values())
        for used_at, prefix in found:
            by_age = older_than_s is not None and now - used_at > older_than_s
            by_size = max_size_bytes is not None and total > max_size_bytes
            by_default = older_than_s is None and max_size_bytes is None
            if by_size or by_default:
                by_size = by_default = now - used_at > FRESH_S
            if (by_age or by_size or by_default) and _remove(prefix, used_at):
                removed.append(prefix)
                total -= sizes[prefix]
    return removed


def stages(folder: Path) -> list[tuple[float, Path]]:
    """Return the time of the last use and the path of each staged prefix in the user's folder, longest unused first."""
    found = []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _STAGE_NAME.fullmatch(entry.name)]
    for name in names:
        with contextlib.suppress(OSError):
            found.append((_used_at(folder / name), folder / name))
    return sorted(found)


def _used_at(prefix: Path) -> float:
    """Return when a stager has last made or reused a staged prefix."""
    try:
        return marker.marker_path(prefix).stat().st_mtime
    except OSError:
        return prefix.lstat().st_mtime


def _disk_bytes(prefixes: Iterable[Path]) -> dict[Path, int]:
    """Return what each staged prefix takes, in bytes; files that several share count for the first one only."""
    sizes = {}
    shared: set[tuple[int, int]] = set()
    for prefix in prefixes:
        total = 0
        stack = [os.fspath(prefix)]
        while stack:
            try:
                with os.scandir(stack.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            stack.append(entry.path)
                            continue
                        info = entry.stat(follow_symlinks=False)
                        if info.st_nlink > 1:
                            if (info.st_dev, info.st_ino) in shared:
                                continue
                            shared.add((info.st_dev, info.st_ino))
                        total += info.st_blocks * 512
            except OSError:
                continue
        sizes[prefix] = total
    return sizes


def _remove(prefix: Path, used_at: float) -> bool:
    """Remove a staged prefix unless a stager or a user holds it, or a stager has reused it since `used_at`.

    Returns
    -------
    bool
        Whether its name is free.
    """
    lock = temporaries.stager_lock(prefix)
    fds = []
    try:
        fds.append(open_lock_file(lock))
        # A stager holds the first lock while it works on the prefix or checks it; users hold the second one.
        if not try_lock(fds[0], lock):
            return False
        try:
            fds.append(open_folder(prefix))
        except OSError:
            prefix.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
            return True
        # Removing others takes time: a job that has reused this one meanwhile may not have locked it yet.
        if not try_lock(fds[1], prefix) or _used_at(prefix) != used_at:
            return False
        aside = temporaries.put_aside(prefix)
        lock.unlink(missing_ok=True)
        temporaries.remove_tree(aside)
        return True
    except OSError:
        return False
    finally:
        for fd in fds:
            os.close(fd)


def make_room(folder: Path, index: Index, members: Collection[int], evicted: list[str]) -> None:
    """Check, before the first of them is written, that files fit; if they do not, remove unused stages first.

    Parameters
    ----------
    folder : Path
        The user's folder in the staging root.
    index : Index
        The archive's index.
    members : collection of int
        The members that are to be written.
    evicted : list of str
        Gets the names of the stages that are removed: own ones that no process uses, longest unused first.

    Raises
    ------
    NoSpaceError
        There is not enough room all the same.
    """
    block = os.statvfs(folder).f_frsize or 4096
    # A file takes whole blocks; each folder takes one as well; marker and index come on top.
    need = (
        len(index.raw) // block
        + 3
        + sum((index.sizes[i] + block - 1) // block or i in index.folders for i in members)
    )

    def shortage() -> str | None:
        limits = os.statvfs(folder)
        if need > limits.f_bavail:
            free = limits.f_bavail * block / 1e6
            return f"the copy takes {need * block / 1e6:.1f} MB, {free:.1f} MB are free"
        # Some file systems do not count inodes, and report 0 of 0.
        if limits.f_files and len(members) > limits.f_favail:
            return f"the copy has {len(members)} files, the file system has {limits.f_favail} inodes free"
        return None

    if shortage() is None:
        return
    for prefix in _unused(folder):
        evicted.append(prefix.name)
        if shortage() is None:
            return
    raise no_space(folder, shortage() or "")


def evict_all(folder: Path) -> tuple[str, ...]:
    """Remove all own stages that no process uses; return their names."""
    return tuple(prefix.name for prefix in _unused(folder))


def _unused(folder: Path) -> Iterable[Path]:
    """Remove one unused stage after another, longest unused first, and yield it."""
    for used_at, prefix in stages(folder):
        if time.time() - used_at > FRESH_S and _remove(prefix, used_at):
            yield prefix


def no_space(folder: Path, why: str) -> NoSpaceError:
    """Return the error for a copy that does not fit; it says what the stages that are in use hold."""
    try:
        sizes = _disk_bytes(prefix for _, prefix in reversed(stages(folder)))
    except OSError:
        sizes = {}
    held, remedy = "", "Choose"
    if sizes:
        names = ", ".join(sorted(prefix.name for prefix in sizes)[:10])
        held = f"; copies in use hold {sum(sizes.values()) / 1e6:.1f} MB: {names}"
        remedy = "End the jobs that use the copies, or choose"
    return NoSpaceError(
        f"no space below {folder} on {host_name()}: {why}{held}",
        f"{remedy} a folder with more room: --root or {STAGE_ROOT_VARIABLE}",
    )


class Usage(NamedTuple):
    """What a staged prefix takes.

    Attributes
    ----------
    prefix : Path
        The staged prefix.
    size_bytes : int
        Its bytes on the disk; files that several stages share count for the newest one.
    in_use : bool
        Whether a process holds it, so that nothing may remove it.
    """

    prefix: Path
    size_bytes: int
    in_use: bool


def usage(root_folder: StrPath) -> list[Usage]:
    """Return this user's staged prefixes below a staging root, the last used ones first."""
    folder = user_folder(root_folder)
    try:
        root.check_user_folder(folder)
        prefixes = [prefix for _, prefix in reversed(stages(folder))]
    except (OSError, StageRootError):
        return []
    return [Usage(prefix, size, _is_held(prefix)) for prefix, size in _disk_bytes(prefixes).items()]


def _is_held(prefix: Path) -> bool:
    try:
        fd = open_folder(prefix)
    except OSError:
        return False
    try:
        return not try_lock(fd, prefix)
    except OSError:
        return False
    finally:
        os.close(fd)
