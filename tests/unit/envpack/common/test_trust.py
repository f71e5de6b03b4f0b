"""Folders for their owner alone."""

import os
import stat
from pathlib import Path

import pytest

from envpack.common.trust import make_private_folder


@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077, 0o777])
def test_all_folders_that_are_made_are_private(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make_private_folder(tmp_path / "home/jobs/job")
    finally:
        os.umask(before)
    made = [tmp_path / name for name in ("home", "home/jobs", "home/jobs/job")]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in made] == [0o700] * 3


def test_a_folder_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o755)
    make_private_folder(tmp_path / "home/jobs")
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o755


def test_default_access_lists_give_nobody_access(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2777)
    make_private_folder(tmp_path / "shared/home")
    assert stat.S_IMODE((tmp_path / "shared/home").stat().st_mode) & 0o077 == 0
