"""Damage in an archive or in a staged prefix is found at its next use, and what the message says to type mends it.

The commands are those that a user types; each remedy is run as the message has it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import environments
import pytest
from environments import SITE
from treewalk import contents, staged_paths

MODULE = f"{SITE}/pygments/lexer.py"
LIBRARY = f"{SITE}/psutil"


class Shell(NamedTuple):
    """A user's shell. Their home and staging root are in `folder`, and their environment is `prefix`."""

    folder: Path
    prefix: Path

    def types(self, line: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            "MPIBOOT_HOME": str(self.folder / "home"),
            "MPIBOOT_STAGE_ROOT": str(self.folder / "root"),
        }
        return subprocess.run(
            ["sh", "-c", line], env=os.environ | variables, capture_output=True, text=True, timeout=120
        )

    def gets(self, line: str) -> Path:
        """Return the path that a command prints. It succeeds."""
        done = self.types(line)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    def packs(self) -> Path:
        return self.gets(f"envpack pack --prefix {self.prefix}")

    def fails(self, line: str) -> str:
        """Return the message of a command that fails."""
        done = self.types(line)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        return done.stderr


def remedy(message: str) -> str:
    """Return the command that the last line of a message ends with."""
    [command] = re.findall(r": ((?:envpack|rm) .*)$", message.strip().splitlines()[-1])
    return command


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environments.uv_copy(tmp_path_factory.mktemp("env")).prefix


@pytest.fixture
def shell(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("t")
    (folder / "root").mkdir()
    return Shell(folder, prefix)


def flip_a_byte(path: Path, at: int) -> None:
    """Change one byte; size and modification time stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("command", ["stage", "verify"])
def test_a_flipped_byte_in_the_archive(shell: Shell, command: str) -> None:
    archive = shell.packs()
    flip_a_byte(archive, archive.stat().st_size // 2)
    message = shell.fails(f"envpack {command} {archive}")
    assert str(archive) in message
    again = shell.gets(remedy(message))
    staged = shell.gets(f"envpack stage {again}")
    assert shell.types(f"envpack verify {again} && envpack verify {staged}").returncode == 0
    assert (staged / MODULE).read_bytes() == (shell.prefix / MODULE).read_bytes()


def test_an_archive_whose_damage_was_found_is_not_reused(shell: Shell) -> None:
    """The user, or mpiboot, simply packs again."""
    archive = shell.packs()
    flip_a_byte(archive, archive.stat().st_size // 2)
    shell.fails(f"envpack stage {archive}")
    again = shell.packs()
    assert shell.gets(f"envpack stage {again}").is_dir()
    assert list(archive.parent.glob("*.damaged")) == []


def lose(staged: Path) -> None:
    (staged / MODULE).unlink()


def lose_a_folder(staged: Path) -> None:
    shutil.rmtree(staged / LIBRARY)


def edit(staged: Path) -> None:
    path = staged / MODULE
    path.write_bytes(path.read_bytes().replace(b"Lexer", b"LEXER", 1))


def truncate(staged: Path) -> None:
    os.truncate(staged / MODULE, 10)


def edit_a_relocated_file(staged: Path) -> None:
    path = staged / "bin/pygmentize"
    path.write_bytes(path.read_bytes().replace(b"main", b"MAIN", 1))


def add_files(staged: Path) -> None:
    """As a task's pip install does."""
    (staged / SITE / "added.py").write_text("VALUE = 1\n")
    (staged / SITE / "added-1.0.dist-info").mkdir()
    (staged / SITE / "added-1.0.dist-info/METADATA").write_text("Name: added\n")


def change_a_mode(staged: Path) -> None:
    (staged / "bin/pygmentize").chmod(0o644)


def turn_a_link(staged: Path) -> None:
    (staged / "bin/python3").unlink()
    (staged / "bin/python3").symlink_to("/usr/bin/env")


def put_a_folder_in_a_files_place(staged: Path) -> None:
    (staged / MODULE).unlink()
    (staged / MODULE).mkdir()
    (staged / MODULE / "file").touch()


def put_a_link_in_a_folders_place(staged: Path) -> None:
    (staged / LIBRARY).rename(staged / SITE / "other")
    (staged / LIBRARY).symlink_to("other")


def lose_a_base_file(staged: Path) -> None:
    next(staged.glob(".envpack-base/lib/python3*/json/decoder.py")).unlink()


def damage_the_index(staged: Path) -> None:
    flip_a_byte(staged / ".envpack/index", 100)


DAMAGES = [
    lose, lose_a_folder, edit, truncate, edit_a_relocated_file, add_files, change_a_mode, turn_a_link,
    put_a_folder_in_a_files_place, put_a_link_in_a_folders_place, lose_a_base_file, damage_the_index,
]  # fmt: skip


@pytest.fixture(scope="module")
def archive(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    return Shell(folder, prefix).packs()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_in_a_staged_prefix(shell: Shell, archive: Path, damage: Callable[[Path], None]) -> None:
    """The next stage finds it and mends it; what was good stays, and is not copied anew."""
    staged = shell.gets(f"envpack stage {archive}")
    before, inodes_before = contents(staged), inodes(staged)
    damage(staged)
    damaged = changed(before, contents(staged)) | changed(inodes_before, inodes(staged))
    assert shell.gets(f"envpack stage {archive}") == staged
    assert changed(before, contents(staged)) == set()
    if damage is not damage_the_index:
        assert changed(inodes_before, inodes(staged)) - damaged == set()
    verified = shell.types(f"envpack verify {staged}")
    assert verified.returncode == 0, verified.stderr


def changed(before: dict[bytes, Any], after: dict[bytes, Any]) -> set[bytes]:
    """Return the paths that only one of two trees has, or that differ."""
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def inodes(staged: Path) -> dict[bytes, int]:
    files = contents(staged)
    return {
        path: os.lstat(place).st_ino for path, place in staged_paths(os.fsencode(staged)) if path in files
    }


def test_a_flipped_byte_in_a_staged_prefix(shell: Shell, archive: Path) -> None:
    """Size and modification time are as before, so that only `verify` sees it, and remembers it for the next stage."""
    staged = shell.gets(f"envpack stage {archive}")
    before, inodes_before = contents(staged), inodes(staged)
    for name in (MODULE, "bin/pygmentize"):
        flip_a_byte(staged / name, (staged / name).stat().st_size - 20)
    message = shell.fails(f"envpack verify {staged}")
    assert MODULE in message and "bin/pygmentize" in message
    shell.gets(remedy(message))
    assert changed(before, contents(staged)) == set()
    assert changed(inodes_before, inodes(staged)) == {MODULE.encode(), b"bin/pygmentize"}
    assert shell.types(f"envpack verify {staged}").returncode == 0


def test_what_verify_found_is_mended_by_the_next_job(shell: Shell, archive: Path) -> None:
    """Nobody typed the remedy; the next stage does not reuse the file."""
    staged = shell.gets(f"envpack stage {archive}")
    before = contents(staged)
    flip_a_byte(staged / MODULE, 1000)
    shell.fails(f"envpack verify {staged}")
    shell.gets(f"envpack stage {archive}")
    assert changed(before, contents(staged)) == set()
