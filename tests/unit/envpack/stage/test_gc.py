"""`envpack gc`: what nobody uses goes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from envpack_trees import stages

import envpack.pack.archive_writer
import envpack.pack.frame_writer
import envpack.stage.marker
import envpack.stage.temporaries
from envpack.common.locks import hold_folder, take_lock
from envpack.errors import StageFailedError, StageRootError
from envpack.stage.gc import gc, usage
from envpack.stage.staging import stage


def age(prefix: Path, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(envpack.stage.marker.marker_path(prefix), (at, at))


def disk_bytes(*prefixes: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for p in prefixes for path in p.rglob("*") if not path.is_dir())


def test_by_age(staged: list[Path], tmp_path: Path) -> None:
    assert gc(tmp_path, older_than_s=4 * 3600) == []
    assert gc(tmp_path, older_than_s=1.5 * 3600) == staged[:2]
    assert stages(tmp_path) == [staged[2].name]
    assert not list(staged[0].parent.glob(f".lock-{staged[0].name}"))


def test_to_a_size(staged: list[Path], tmp_path: Path) -> None:
    assert gc(tmp_path, max_size_bytes=disk_bytes(*staged)) == []
    assert gc(tmp_path, max_size_bytes=disk_bytes(*staged[1:])) == staged[:1]
    assert gc(tmp_path, max_size_bytes=0) == staged[1:]


def test_all_that_is_not_in_use(staged: list[Path], tmp_path: Path) -> None:
    in_use = hold_folder(staged[1])
    assert gc(tmp_path) == [staged[0], staged[2]]
    assert stages(tmp_path) == [staged[1].name]
    os.close(in_use)
    assert gc(tmp_path) == [staged[1]]
    assert gc(tmp_path) == []


def test_never_one_that_is_being_staged(archives: list[Path], staged: list[Path], tmp_path: Path) -> None:
    lock = take_lock(envpack.stage.temporaries.stager_lock(staged[0]), 1.0, error=StageFailedError)
    assert gc(tmp_path) == staged[1:]
    os.close(lock)


def test_never_a_fresh_one(archives: list[Path], tmp_path: Path) -> None:
    prefix = stage(archives[0], tmp_path).prefix
    assert gc(tmp_path) == [] == gc(tmp_path, max_size_bytes=0)
    age(prefix, 100)
    # Used just now.
    assert stage(archives[0], tmp_path).reused
    assert gc(tmp_path) == []


@pytest.mark.parametrize("options", [{}, {"older_than_s": 60}, {"max_size_bytes": 0}])
def test_never_one_that_was_reused_meanwhile(
    options: dict[str, int],
    archives: list[Path],
    staged: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job reuses a stage while others, which were not used for longer, are being removed."""
    remove_tree = envpack.stage.temporaries.remove_tree

    def reuse_meanwhile(path: Path) -> bool:
        assert stage(archives[2], tmp_path).reused
        return remove_tree(path)

    monkeypatch.setattr(envpack.stage.temporaries, "remove_tree", reuse_meanwhile)
    assert gc(tmp_path, **options) == staged[:2]
    assert stages(tmp_path) == [staged[2].name]


def test_leftovers_and_what_is_not_ours(staged: list[Path], tmp_path: Path) -> None:
    folder = staged[0].parent
    dead, fd = envpack.stage.temporaries.make_temporary(folder, "x")
    os.close(fd)
    (folder / ".jobs").mkdir()
    (folder / "notes").mkdir()
    assert gc(tmp_path, older_than_s=10 * 3600) == [dead]
    assert {".jobs", "notes"} <= {path.name for path in folder.iterdir()}
    gc(tmp_path)
    assert {".jobs", "notes"} <= {path.name for path in folder.iterdir()}


def test_a_stage_without_its_marker_is_as_old_as_its_folder(staged: list[Path], tmp_path: Path) -> None:
    envpack.stage.marker.marker_path(staged[0]).unlink()
    os.utime(staged[0], (0, 0))
    assert gc(tmp_path, older_than_s=10 * 3600) == [staged[0]]


def test_no_root_no_work(tmp_path: Path) -> None:
    assert gc(tmp_path / "none") == []
    assert gc(tmp_path) == []


def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"mpiboot-{os.geteuid()}").symlink_to("/")
    with pytest.raises(StageRootError, match="it is a symbolic link"):
        gc(tmp_path)


def test_removing_does_not_follow_links(staged: list[Path], tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (staged[0] / "link").symlink_to(tmp_path / "kept")
    (staged[0] / "closed").mkdir()
    (staged[0] / "closed" / "file").touch()
    (staged[0] / "closed").chmod(0o500)
    assert gc(tmp_path) == staged
    assert (tmp_path / "kept" / "file").exists()


def test_usage_removes_nothing(staged: list[Path], tmp_path: Path) -> None:
    in_use = hold_folder(staged[1])
    found = usage(tmp_path)
    assert [(each.prefix, each.in_use) for each in found] == [
        (prefix, prefix == staged[1]) for prefix in staged[::-1]
    ]
    # A file that two stages share counts once.
    assert 0 < sum(each.size_bytes for each in found) <= disk_bytes(*staged)
    os.close(in_use)
    assert [each.in_use for each in usage(tmp_path)] == [False] * 3
    assert stages(tmp_path) == sorted(prefix.name for prefix in staged)


def test_usage_of_a_root_without_stages(tmp_path: Path) -> None:
    assert usage(tmp_path) == usage("/nonexistent") == []
