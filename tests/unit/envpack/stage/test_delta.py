"""A new stage takes from an older one on the node what that has, and never a wrong file."""

from __future__ import annotations

import errno
import os
import random
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from envpack_trees import SITE, staged_tree, stages

import envpack.stage.marker
from envpack.archive.encoding import read_index
from envpack.common.locks import hold_folder, take_lock
from envpack.errors import EnvpackError, StageFailedError
from envpack.stage import arrival, delta, temporaries
from envpack.stage.gc import gc
from envpack.stage.staging import stage, stage_arriving
from envpack.stage.verify import verify

RELOCATED = (Path("bin", "demo"), SITE / "demo" / "config.py", SITE / "demo" / "large.txt")
LARGE = SITE / "demo" / "data" / "noise.bin"


def cold_tree(archive: Path, tmp_path: Path) -> dict[bytes, tuple[object, ...]]:
    """Return the tree that the archive's stage must have, made without an older one, but at the same path."""
    prefix = stage(archive, tmp_path, force=True).prefix
    found = staged_tree(prefix)
    temporaries.remove_tree(prefix)
    return found


@pytest.fixture
def older(archives: list[Path], tmp_path: Path) -> Path:
    return stage(archives[0], tmp_path).prefix


def test_what_an_older_stage_has_is_linked(archives: list[Path], tmp_path: Path) -> None:
    expected = cold_tree(archives[1], tmp_path)
    older = stage(archives[0], tmp_path).prefix
    index = read_index(archives[1])
    result = stage(archives[1], tmp_path)
    assert staged_tree(result.prefix) == expected
    verify(result.prefix)
    assert (result.prefix / LARGE).samefile(older / LARGE)
    for path in RELOCATED:
        assert not (result.prefix / path).samefile(older / path)
    made_here = len(index.meta["compile"])
    edited = len([record for record in index.meta["relocations"] if record[1] != "link"])
    assert result.linked == len(index.files) - edited - made_here - 1
    # The index, and the frames of the one file that differs.
    filler = index.sizes[index.paths.index(b"share/filler")]
    assert result.bytes_read < len(index.raw) + filler + 3 * index.meta["part_bytes"]
    assert stage(archives[1], tmp_path).reused and stage(archives[0], tmp_path).reused


def test_a_stage_in_use_serves_too(archives: list[Path], older: Path, tmp_path: Path) -> None:
    in_use = hold_folder(older)
    assert stage(archives[1], tmp_path).linked > 0
    os.close(in_use)


def test_the_older_stage_is_locked_meanwhile(archives: list[Path], older: Path, tmp_path: Path) -> None:
    os.utime(envpack.stage.marker.marker_path(older), (0, 0))
    index = read_index(archives[1])
    from envpack.stage.stager import Stager

    with Stager(index, tmp_path):
        assert gc(tmp_path) == []
    assert gc(tmp_path) == [older]


def test_the_older_stage_can_be_used_while_the_rest_is_read(
    archives: list[Path], older: Path, tmp_path: Path
) -> None:
    """The rest may take minutes to come from a slow file system."""
    reused = []

    def use(done: int, total: int) -> None:
        os.close(take_lock(temporaries.stager_lock(older), 0, error=StageFailedError))
        reused.append(stage(archives[0], tmp_path).reused)

    assert stage(archives[1], tmp_path, progress=use).linked > 0
    assert reused and all(reused)


def test_an_archive_that_is_still_arriving(archives: list[Path], older: Path, tmp_path: Path) -> None:
    """Frames that are not needed are not waited for."""
    index = read_index(archives[1])
    filler = index.paths.index(b"share/filler")
    ends = list(accumulate(index.frame_raw_sizes))
    last = bisect_right(ends, index.offsets[filler] + index.sizes[filler])
    assert last + 1 < len(ends)
    frames = archives[1].read_bytes()[: index.frame_starts()[last + 1]]
    growing = tmp_path / "growing"
    growing.write_bytes(arrival.head(index.raw) + index.raw + frames)
    pipe, end = os.pipe()
    os.close(end)
    with growing.open("rb") as file:
        arriving = arrival.Arrival(file.fileno(), pipe)
        result = stage_arriving(arriving, archives[1], tmp_path, begin=lambda _: None)
    os.close(pipe)
    assert result.linked > 0
    verify(result.prefix)


@pytest.mark.parametrize(
    "why", ["another stager", "another boot", "no marker", "its index", "another version"]
)
def test_a_stage_that_cannot_serve(
    why: str, archives: list[Path], older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = envpack.stage.marker.index_path(older)
    if why == "another stager":
        take_lock(temporaries.stager_lock(older), 1, error=StageFailedError)
    elif why == "another boot":
        monkeypatch.setattr(envpack.stage.marker, "boot_id", lambda: "another boot")
    elif why == "no marker":
        envpack.stage.marker.marker_path(older).unlink()
    elif why == "its index":
        index.write_bytes(index.read_bytes()[:-1])
    else:
        index.write_bytes(index.read_bytes()[:-16] + b"\1\0\0\0" + index.read_bytes()[-12:])
    result = stage(archives[1], tmp_path)
    assert (result.linked, result.bytes_read) == (0, archives[1].stat().st_size)


def test_the_same_name_first_then_the_one_used_last(archives: list[Path], tmp_path: Path) -> None:
    prefixes = [stage(archive, tmp_path).prefix for archive in archives[:2]]
    os.utime(envpack.stage.marker.marker_path(prefixes[1]), (0, 0))
    (prefixes[0].parent / ("other" + prefixes[0].name[3:])).mkdir()
    index = read_index(archives[2])
    from envpack.stage.relocate import Relocation

    def chosen() -> Path | None:
        prefix = prefixes[0].with_name("env-" + index.pack_id[:16])
        found = delta.find(prefix, index, Relocation(index, prefix))
        if found:
            found.close()
        return found and found.prefix

    assert chosen() == prefixes[0]
    os.utime(envpack.stage.marker.marker_path(prefixes[0]), (0, 0))
    os.utime(envpack.stage.marker.marker_path(prefixes[1]))
    assert chosen() == prefixes[1]


@pytest.mark.parametrize("path", [LARGE, *RELOCATED])
def test_a_file_that_was_edited_is_not_taken(path: Path, archives: list[Path], tmp_path: Path) -> None:
    expected = cold_tree(archives[1], tmp_path)
    older = stage(archives[0], tmp_path).prefix
    content = bytearray((older / path).read_bytes())
    content[-2] ^= 1
    (older / path).write_bytes(content)
    result = stage(archives[1], tmp_path)
    assert staged_tree(result.prefix) == expected
    verify(result.prefix)


def test_a_file_that_was_lost_comes_from_the_archive(archives: list[Path], tmp_path: Path) -> None:
    expected = cold_tree(archives[1], tmp_path)
    older = stage(archives[0], tmp_path).prefix
    (older / LARGE).unlink()
    assert staged_tree(stage(archives[1], tmp_path).prefix) == expected


def test_no_file_is_taken_through_a_symlink(archives: list[Path], tmp_path: Path) -> None:
    expected = cold_tree(archives[1], tmp_path)
    folder = (stage(archives[0], tmp_path).prefix / LARGE).parent
    elsewhere = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(elsewhere)
    prefix = stage(archives[1], tmp_path).prefix
    assert staged_tree(prefix) == expected
    assert not (prefix / LARGE).samefile(elsewhere / LARGE.name)


@pytest.mark.parametrize("path", RELOCATED)
def test_the_content_of_a_relocated_file_is_checked(path: Path, archives: list[Path], tmp_path: Path) -> None:
    """An edit that keeps size and time: only the digest tells."""
    expected = cold_tree(archives[1], tmp_path)
    older = stage(archives[0], tmp_path).prefix
    info = (older / path).stat()
    content = bytearray((older / path).read_bytes())
    content[-2] ^= 1
    (older / path).write_bytes(content)
    os.utime(older / path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert staged_tree(stage(archives[1], tmp_path).prefix) == expected


@pytest.mark.parametrize("number", [errno.EMLINK, errno.EXDEV, errno.EPERM])
def test_no_hard_links(
    number: int, archives: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = cold_tree(archives[1], tmp_path)
    stage(archives[0], tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    result = stage(archives[1], tmp_path)
    assert result.linked == 0
    assert staged_tree(result.prefix) == expected
    verify(result.prefix)
    assert stage(archives[1], tmp_path).reused


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_cannot_be_linked_comes_from_the_archive(
    number: int, archives: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task has taken a folder's mode in the older stage, or the disk cannot read it."""
    expected = cold_tree(archives[1], tmp_path)
    stage(archives[0], tmp_path)
    link = os.link

    def refuse_one(source: bytes, target: bytes, **options: Any) -> None:
        if source == target == os.fsencode(LARGE):
            raise OSError(number, os.strerror(number))
        link(source, target, **options)

    monkeypatch.setattr(os, "link", refuse_one)
    assert staged_tree(stage(archives[1], tmp_path).prefix) == expected


def test_an_edit_of_a_shared_file_is_mended_in_both(
    archives: list[Path], older: Path, tmp_path: Path
) -> None:
    """A task edits a file in place, in a stage whose inodes another one shares."""
    newer = stage(archives[1], tmp_path).prefix
    whole = [staged_tree(prefix) for prefix in (older, newer)]
    with (newer / LARGE).open("r+b") as file:
        file.write(b"edited")
    in_use = hold_folder(older)
    for archive in archives[:2]:
        result = stage(archive, tmp_path)
        assert (result.reused, result.repaired) == (False, 1)
    os.close(in_use)
    assert [staged_tree(prefix) for prefix in (older, newer)] == whole
    assert not (newer / LARGE).samefile(older / LARGE)


def test_touched_files_are_rebuilt_from_the_older_stage(
    tmp_path: Path, archives: list[Path], older: Path, pack_touched: Callable[..., Path]
) -> None:
    """The same content with another time or mode: no link, but nothing to read either."""
    script = Path(read_index(archives[2]).prefix, "bin", "demo")
    script.chmod(0o700)
    try:
        archive = pack_touched(LARGE)
    finally:
        script.chmod(0o755)
    result = stage(archive, tmp_path)
    assert (result.prefix / LARGE).stat().st_mtime == 1_000_000_000
    assert (result.prefix / "bin" / "demo").stat().st_mode & 0o777 == 0o700
    assert not (result.prefix / LARGE).samefile(older / LARGE)
    assert result.bytes_read < 220_000
    verify(result.prefix)


def test_a_flipped_bit_anywhere_gives_a_named_error_or_the_right_tree(
    archives: list[Path], tmp_path: Path
) -> None:
    """With an older stage, damaged frames may not be needed; a wrong tree never comes of it."""
    expected = cold_tree(archives[2], tmp_path)
    older = stage(archives[0], tmp_path).prefix
    good = archives[2].read_bytes()
    random.seed(3)
    outcomes = []
    for n in range(100):
        data = bytearray(good)
        place = (
            random.randrange(len(good)) if n % 3 else random.randrange(read_index(archives[2]).archive_bytes)
        )
        data[place] ^= 1 << random.randrange(8)
        path = tmp_path / "bad.tar.zst"
        path.write_bytes(data)
        try:
            prefix = stage(path, tmp_path).prefix
        except EnvpackError as exc:
            assert os.fspath(path) in str(exc)
            outcomes.append(False)
        else:
            assert staged_tree(prefix) == expected
            temporaries.remove_tree(prefix)
            outcomes.append(True)
        assert stages(tmp_path) == [older.name]
    assert 10 < sum(outcomes) < 90
