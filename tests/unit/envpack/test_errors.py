"""Each message ends with a remedy, and the commands in remedies work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from envpack_trees import SITE, make_venv

from envpack import errors
from envpack.archive.damage import mark
from envpack.archive.encoding import read_index
from envpack.errors import CorruptArchiveError, EnvpackError, StageFailedError, StageRootError
from envpack.pack.packing import pack
from envpack.stage.staging import stage
from envpack.stage.verify import verify


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MPIBOOT_HOME", os.fspath(tmp_path / "a home"))
    return make_venv(tmp_path / "env")


def type_remedy(error: EnvpackError) -> str:
    """Run the command that a message ends with."""
    command = str(error).rpartition(": ")[2]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    return done.stdout.strip()


def test_every_class_says_when_it_is_raised() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(classes) == 16
    assert all(value.__doc__ and value.__doc__ != Exception.__doc__ for value in classes)
    assert (
        str(errors.NoSpaceError("no space on n1", "Run envpack gc there"))
        == "no space on n1. Run envpack gc there"
    )


def test_a_damaged_archive_is_packed_again(prefix: Path, tmp_path: Path) -> None:
    path = pack(prefix).path
    data = bytearray(path.read_bytes())
    data[read_index(path).archive_bytes // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptArchiveError) as raised:
        stage(path, tmp_path)
    # The damage was noted; where it could not be, the command of the message packs again all the same.
    mark(path).unlink()
    assert pack(prefix).reused
    verify(type_remedy(raised.value))
    path.write_bytes(data)
    with pytest.raises(CorruptArchiveError):
        stage(path, tmp_path)
    assert not pack(prefix).reused
    verify(path)


def test_a_damaged_stage_is_staged_again(prefix: Path, tmp_path: Path) -> None:
    path = pack(prefix).path
    staged = stage(path, tmp_path).prefix
    file = staged / SITE / "demo" / "__init__.py"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(StageFailedError) as raised:
        verify(staged)
    type_remedy(raised.value)
    assert stage(path, tmp_path).reused
    verify(staged)


def test_an_open_folder_is_closed(prefix: Path, tmp_path: Path) -> None:
    path, root = pack(prefix).path, tmp_path / "a root"
    root.mkdir()
    stage(path, root).prefix.parent.chmod(0o755)
    with pytest.raises(StageRootError) as raised:
        stage(path, root)
    type_remedy(raised.value)
    assert stage(path, root).reused
