"""Remove staged prefixes that nobody uses: by the time since they were last staged, or to a size."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.locks import open_folder, open_lock_file, try_lock
from envpack.common.places import stage_root, user_folder
from envpack.stage import marker, root, temporaries

if TYPE_CHECKING:
    from envpack.common.places import StrPath

# What else lies in our folder is not ours to judge.
_STAGE_NAME = re.compile(r"[^.].*-[0-9a-f]{16}")
# A stage this fresh may be on its way to its first worker, which will hold it.
FRESH_S = 60.0


def gc(
    root_folder: StrPath | None = None,
    *,
    older_than_s: float | None = None,
    max_size_bytes: int | None = None,
) -> list[Path]:
    """Remove staged prefixes, never one that is in use, and what dead stagers left.

    Parameters
    ----------
    root_folder : str or os.PathLike, optional
        The staging root (default MPIBOOT_STAGE_ROOT, then /tmp).
    older_than_s : float, optional
        Remove those that were last staged, or found there, longer ago: seconds.
    max_size_bytes : int, optional
        Remove the longest unused until the rest is no larger. With neither, all that are not in use are removed.

    Returns
    -------
    list[Path]
        What was removed.

    Raises
    ------
    StageRootError
        Our folder in the staging root is not ours alone.
    """
    folder = user_folder(root_folder or stage_root())
    if not folder.exists() and not folder.is_symlink():
        return []
    root.check_own_folder(folder)
    removed = temporaries.sweep(folder)
    stages = _stages(folder)
    now = time.time()
    total = sum(size for _, _, size in stages)
    for used_at, prefix, size in sorted(stages):
        by_age = older_than_s is not None and now - used_at > older_than_s
        by_size = max_size_bytes is not None and total > max_size_bytes
        by_default = older_than_s is None and max_size_bytes is None
        if by_size or by_default:
            # What was staged a moment ago belongs to a job that is starting.
            by_size = by_default = now - used_at > FRESH_S
        if (by_age or by_size or by_default) and _remove(folder, prefix):
            removed.append(prefix)
            total -= size
    return removed


def _stages(folder: Path) -> list[tuple[float, Path, int]]:
    found = []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _STAGE_NAME.fullmatch(entry.name)]
    for name in names:
        prefix = folder / name
        try:
            used_at = marker.marker_path(prefix).stat().st_mtime
        except OSError:
            used_at = prefix.lstat().st_mtime
        found.append((used_at, prefix, _disk_bytes(prefix)))
    return found


def _disk_bytes(path: Path) -> int:
    total = 0
    stack = [os.fspath(path)]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue
    return total


def _remove(folder: Path, prefix: Path) -> bool:
    lock = folder / f".lock-{prefix.name}"
    lock_fd = open_lock_file(lock)
    try:
        # A stager at work on it, or checking it, has the first lock; its users have the second.
        if not try_lock(lock_fd, lock):
            return False
        try:
            fd = open_folder(prefix)
        except OSError:
            prefix.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
            return True
        try:
            if not try_lock(fd, prefix):
                return False
            aside = temporaries.put_aside(prefix)
            lock.unlink(missing_ok=True)
            temporaries.remove_tree(aside)
            return True
        finally:
            os.close(fd)
    finally:
        os.close(lock_fd)
