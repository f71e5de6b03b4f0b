"""A stage that the node has: used as it is only if it is whole and nothing was added; else mended, file by file."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from envpack_trees import SITE, staged_tree, stages

import envpack.stage.compare
import envpack.stage.marker
from envpack.archive.encoding import read_index
from envpack.common.locks import hold_folder
from envpack.errors import CorruptArchiveError, StageFailedError
from envpack.stage.relocate import Relocation
from envpack.stage.staging import stage
from envpack.stage.verify import verify

FILLER = Path("share", "filler")
CONFIG = SITE / "demo" / "config.py"
BYTECODE = CONFIG.parent / "__pycache__" / f"config.{sys.implementation.cache_tag}.pyc"


def rewrite(path: Path, content: bytes) -> None:
    """Edit a file in place, and give it back its time."""
    info = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def test_an_edit_of_equal_size(archives: list[Path], staged: list[Path], tmp_path: Path) -> None:
    """The next job does not run it."""
    whole = staged_tree(staged[0])
    init = staged[0] / SITE / "demo" / "__init__.py"
    init.write_text(init.read_text().replace("42", "43"))
    assert stage(archives[0], tmp_path).repaired == 1
    assert staged_tree(staged[0]) == whole


def test_a_package_that_a_task_has_installed(
    archives: list[Path], staged: list[Path], tmp_path: Path
) -> None:
    """As Dask's PipInstall does."""
    whole = staged_tree(staged[0])
    package = staged[0] / SITE / "package"
    (package / "sub").mkdir(parents=True)
    (package / "sub" / "module.py").touch()
    (staged[0] / SITE / "single.py").touch()
    result = stage(archives[0], tmp_path)
    assert (result.reused, result.repaired, result.bytes_read) == (False, 0, len(read_index(archives[0]).raw))
    assert staged_tree(staged[0]) == whole
    assert stage(archives[0], tmp_path).reused


def test_what_was_added_to_a_stage_in_use(archives: list[Path], staged: list[Path], tmp_path: Path) -> None:
    in_use = hold_folder(staged[0])
    for n in range(12):
        (staged[0] / SITE / f"extra-{n:02}").touch()
    with pytest.raises(StageFailedError) as raised:
        stage(archives[0], tmp_path)
    names = ", ".join(f"{SITE}/extra-{n:02}" for n in range(10))
    assert raised.value.problem == (
        f"{staged[0]} on {os.uname().nodename} has files that are not the environment's (12 in all), which cannot be "
        f"removed while a process uses it: {names}"
    )
    assert raised.value.remedy == (
        "End the jobs that use it, or choose another staging root: --root or MPIBOOT_STAGE_ROOT"
    )
    (tmp_path / "other").mkdir()
    assert not stage(archives[0], tmp_path / "other").reused
    os.close(in_use)
    assert not stage(archives[0], tmp_path).reused
    assert stage(archives[0], tmp_path).reused


def test_what_python_numba_and_fontconfig_write_is_no_damage(
    archives: list[Path], staged: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = staged[0] / SITE / "demo"
    caches = ["config.cpython-399.pyc", "config.f-1.py311.nbi", "config.cpython-311.pyc.14000"]
    for name in caches:
        (demo / "__pycache__" / name).write_bytes(b"x")
    # Python makes the folder for a source that was never imported.
    (demo / "data" / "module.py").touch()
    assert not stage(archives[0], tmp_path).reused
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    subprocess.run([staged[0] / "bin" / "python", "-O", "-c", "import demo.config"], check=True)
    assert stage(archives[0], tmp_path).reused
    assert sorted(path.name for path in (demo / "__pycache__").glob("config.*")) == sorted(
        [*caches, BYTECODE.name, BYTECODE.with_suffix(".opt-1.pyc").name]
    )
    (staged[0] / "var" / "cache" / "fontconfig").mkdir(parents=True)
    (staged[0] / "var" / "cache" / "fontconfig" / "x.cache-9").touch()
    assert stage(archives[0], tmp_path).reused
    (demo / "__pycache__" / "other.cpython-311.pyc").touch()
    assert not stage(archives[0], tmp_path).reused
    assert not (demo / "__pycache__" / "other.cpython-311.pyc").exists()


def test_files_that_a_running_process_renames_meanwhile(
    archives: list[Path], staged: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python writes a `.pyc` file under a temporary name, which is gone between scandir(2) and lstat(2)."""
    scandir = os.scandir

    def vanishing(path: bytes) -> Any:
        entries = list(scandir(path))
        for entry in entries:
            if entry.name == b"demo.cpython-399.pyc.140":
                os.unlink(entry.path)  # noqa: PTH108
        return contextlib.nullcontext(entries)

    (staged[0] / SITE / "demo" / "__pycache__" / "demo.cpython-399.pyc.140").touch()
    monkeypatch.setattr(envpack.stage.compare.os, "scandir", vanishing)  # type: ignore[attr-defined]
    survey = envpack.stage.compare.survey(
        staged[0], index := read_index(archives[0]), Relocation(index, staged[0])
    )
    assert (survey.is_clean, survey.caches) == (True, [])


def test_only_frames_that_are_needed_are_read(
    archives: list[Path], staged: list[Path], tmp_path: Path
) -> None:
    index = read_index(archives[0])
    (staged[0] / SITE / "demo" / "__init__.py").unlink()
    result = stage(archives[0], tmp_path)
    assert (result.reused, result.repaired, result.linked) == (False, 1, 0)
    assert result.bytes_read - len(index.raw) in list(index.frame_sizes)
    assert stages(tmp_path) == sorted(path.name for path in staged)


def test_a_changed_source_gets_its_bytecode_back(
    archives: list[Path], staged: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Python has compiled the changed source, which has the old one's size and time."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    code = "import demo.config as c; print(c.PREFIX)"
    config = staged[0] / CONFIG
    good = config.read_bytes()
    rewrite(config, good.replace(bytes(staged[0])[:5], b"/----"))
    (staged[0] / BYTECODE).unlink()

    def imported(*options: str) -> str:
        return subprocess.run(
            [staged[0] / "bin" / "python", *options, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()

    assert imported().startswith("/----") and imported("-O").startswith("/----")
    with pytest.raises(StageFailedError):
        verify(staged[0])
    assert stage(archives[0], tmp_path).repaired == 1
    assert imported() == imported("-O") == str(staged[0])


def test_a_whole_folder_that_was_lost(archives: list[Path], staged: list[Path], tmp_path: Path) -> None:
    whole = staged_tree(staged[0])
    subprocess.run(["rm", "-r", staged[0] / SITE / "demo", staged[0] / "bin"], check=True)
    in_use = hold_folder(staged[0])
    assert stage(archives[0], tmp_path).repaired > 10
    os.close(in_use)
    found = staged_tree(staged[0])
    key = os.fsencode(BYTECODE)
    assert found.pop(key)[0] == whole.pop(key)[0] == "file"
    assert found == whole
    data = staged[0] / SITE / "demo" / "data"
    assert (data / "read-only").samefile(data / "second-name")
    verify(staged[0])


def test_a_folder_without_its_mode(archives: list[Path], staged: list[Path], tmp_path: Path) -> None:
    (staged[0] / FILLER).unlink()
    (staged[0] / "share").chmod(0o500)
    staged[0].chmod(0)
    assert stage(archives[0], tmp_path).repaired == 1
    assert stage(archives[0], tmp_path).reused


def test_force_reads_every_file(archives: list[Path], staged: list[Path], tmp_path: Path) -> None:
    whole = staged_tree(staged[0])
    rewrite(staged[0] / FILLER, bytes(300_000))
    rewrite(
        staged[0] / "bin" / "demo", (staged[0] / "bin" / "demo").read_bytes().replace(b"42", b"43") + b"#"
    )
    assert stage(archives[0], tmp_path).repaired == 1
    assert stage(archives[0], tmp_path).reused
    result = stage(archives[0], tmp_path, force=True)
    assert (result.reused, result.repaired) == (False, 1)
    assert staged_tree(staged[0]) == whole
    assert stage(archives[0], tmp_path, force=True).reused


def test_a_damaged_archive_mends_nothing(archives: list[Path], staged: list[Path], tmp_path: Path) -> None:
    (staged[0] / FILLER).unlink()
    index = read_index(archives[0])
    data = bytearray(archives[0].read_bytes())
    for start, size in zip(index.frame_starts(), index.frame_sizes, strict=False):
        data[start + size // 2] ^= 1
    bad = tmp_path / "bad.tar.zst"
    bad.write_bytes(data)
    before = staged_tree(staged[0])
    with pytest.raises(CorruptArchiveError):
        stage(bad, tmp_path)
    assert staged_tree(staged[0]) == before
    assert stage(archives[0], tmp_path).repaired == 1


def test_a_stage_of_the_same_content_is_used(
    archives: list[Path], staged: list[Path], pack_touched: Callable[..., Path], tmp_path: Path
) -> None:
    """It is as its own index says, with the times of then."""
    touched = pack_touched(FILLER, SITE / "demo" / "__init__.py")
    assert read_index(touched).pack_id == read_index(archives[2]).pack_id
    before = (staged[2] / FILLER).stat().st_mtime
    assert before != 1_000_000_000
    result = stage(touched, tmp_path)
    assert (result.reused, result.prefix) == (True, staged[2])
    assert (staged[2] / FILLER).stat().st_mtime == before
    # Once something has to be read, it becomes as the archive says.
    (staged[2] / "bin" / "demo").unlink()
    # Its bytecode holds the source's time.
    assert stage(touched, tmp_path).repaired == 4
    assert (staged[2] / FILLER).stat().st_mtime == 1_000_000_000
    verify(staged[2])
    assert stage(touched, tmp_path).reused and stage(archives[2], tmp_path).reused


def test_a_file_system_that_keeps_whole_seconds(
    archives: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: no such file system can be mounted on every machine."""
    utime = os.utime

    def coarse(path: int, *, ns: tuple[int, int] | None = None, **options: object) -> None:
        if ns:
            options["ns"] = (ns[0], ns[1] // 10**9 * 10**9)
        utime(path, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "utime", coarse)
    prefix = stage(archives[0], tmp_path).prefix
    assert stage(archives[0], tmp_path).reused
    verify(prefix)
    os.utime(prefix / FILLER, ns=(0, 7 * 10**9))
    assert stage(archives[0], tmp_path).repaired == 1


def test_access_times_are_now(archives: list[Path], tmp_path: Path) -> None:
    """Cleaners of /tmp remove what was not read for days."""
    before = time.time_ns()
    prefix = stage(archives[0], tmp_path).prefix
    index = read_index(archives[0])
    for i in index.files:
        info = (prefix / os.fsdecode(index.paths[i])).lstat()
        assert info.st_atime_ns >= before
        assert index.paths[i] in envpack.stage.compare.compiled_paths(index) or (
            info.st_mtime_ns == index.mtimes_ns[i]
        )
