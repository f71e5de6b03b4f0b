"""`envpack gc`: remove staged prefixes that no process uses, by the time since their last use, or down to a size."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.locks import open_folder, open_lock_file, try_lock
from envpack.common.places import default_stage_root, user_folder
from envpack.stage import marker, root, temporaries

if TYPE_CHECKING:
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

    With neither `older_than_s` nor `max_size_bytes`, all staged prefixes go that no process uses.

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
    """
    folder = user_folder(root_folder or default_stage_root())
    if not folder.exists() and not folder.is_symlink():
        return []
    root.check_user_folder(folder)
    removed = temporaries.sweep_temporaries(folder)
    stages = _stages(folder)
    now = time.time()
    total = sum(size for _, _, size in stages)
    for used_at, prefix, size in sorted(stages):
        by_age = older_than_s is not None and now - used_at > older_than_s
        by_size = max_size_bytes is not None and total > max_size_bytes
        by_default = older_than_s is None and max_size_bytes is None
        if by_size or by_default:
            by_size = by_default = now - used_at > FRESH_S
        if (by_age or by_size or by_default) and _remove(prefix):
            removed.append(prefix)
            total -= size
    return removed


def _stages(folder: Path) -> list[tuple[float, Path, int]]:
    """Return the staged prefixes in a folder: the time of the last use, the path, the size in bytes."""
    stages = []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _STAGE_NAME.fullmatch(entry.name)]
    for name in names:
        prefix = folder / name
        try:
            used_at = marker.marker_path(prefix).stat().st_mtime
        except OSError:
            used_at = prefix.lstat().st_mtime
        stages.append((used_at, prefix, _disk_bytes(prefix)))
    return stages


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


def _remove(prefix: Path) -> bool:
    """Remove a staged prefix unless a stager or a user holds it; tell whether it is gone."""
    lock = temporaries.stager_lock(prefix)
    lock_fd = open_lock_file(lock)
    try:
        # A stager holds the first lock while it works on the prefix or checks it; users hold the second one.
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
