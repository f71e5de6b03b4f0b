from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from envpack.common.locks import hold_folder, open_folder, open_lock_file, try_lock, wait_for_lock


def test_one_holds_it_alone_or_several_share_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second, third = (open_lock_file(path) for _ in range(3))
    assert try_lock(first, path) and not try_lock(second, path) and not try_lock(second, path, shared=True)
    os.close(first)
    assert try_lock(second, path, shared=True) and not try_lock(third, path)
    assert try_lock(third, path, shared=True)
    for fd in (second, third):
        os.close(fd)
    wait_for_lock(open_lock_file(path))
    assert not try_lock(open_lock_file(path), path)


def test_a_lock_on_what_was_replaced_excludes_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    fd = open_lock_file(path)
    path.unlink()
    assert not try_lock(fd, path)
    open_lock_file(path)
    assert not try_lock(fd, path)


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="link"):
        open_folder(tmp_path / "link")
    with pytest.raises(OSError, match="link"):
        open_lock_file(tmp_path / "link")
    os.close(open_folder(tmp_path))


def test_child_processes_go_on_holding_a_folder(tmp_path: Path) -> None:
    fd = hold_folder(tmp_path)
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    os.close(fd)

    def can_be_locked() -> bool:
        mine = open_folder(tmp_path)
        try:
            return try_lock(mine, tmp_path)
        finally:
            os.close(mine)

    assert not can_be_locked()
    os.close(hold_folder(tmp_path))
    child.kill()
    child.wait()
    assert can_be_locked()


def test_a_folder_that_is_gone_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hold_folder(tmp_path / "gone")
