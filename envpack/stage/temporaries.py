"""Stages that are being written or removed: one stager at a time, in a folder of its own that others may only sweep."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.common.locks import open_folder, open_lock_file, try_lock
from envpack.common.places import host_name
from envpack.errors import StageFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envpack.common.places import StrPath


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
