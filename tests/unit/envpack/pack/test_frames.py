"""Files that span frames are packed as small ones are."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

import envpack.pack.scan
from envpack.archive.encoding import read_index
from envpack.archive.index import FRAME_BYTES, Index
from envpack.errors import BrokenEnvironmentError, CorruptArchiveError
from envpack.pack.frame_writer import Piece, cut
from envpack.pack.members import FILE, HARDLINK, Member, arrange
from envpack.pack.older import OlderArchive
from envpack.pack.packing import pack
from envpack.stage.verify import verify


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A conda environment without Python."""
    monkeypatch.setenv("MPIBOOT_HOME", os.fspath(tmp_path / "home"))
    (tmp_path / "env" / "conda-meta").mkdir(parents=True)
    return tmp_path / "env"


def install(prefix: Path, path: str, content: bytes, sha256: str | None = None) -> None:
    """Write a file and conda's record of it."""
    (prefix / path).write_bytes(content)
    item = {"_path": path, "path_type": "hardlink", "sha256": sha256 or hashlib.sha256(content).hexdigest()}
    record = {"name": "big", "version": "1", "paths_data": {"paths": [item]}}
    (prefix / "conda-meta" / "big-1-0.json").write_text(json.dumps(record))


def relocated(index: Index) -> list[bytes]:
    return [index.paths[number] for number, *_ in index.meta["relocations"]]


def test_the_last_member_is_large(prefix: Path) -> None:
    member = Member(b"a", FILE, size=FRAME_BYTES + 1)
    assert list(cut([member])) == [[Piece(member, 0, FRAME_BYTES)], [Piece(member, FRAME_BYTES, 1)]]
    (prefix / "large").write_bytes(bytes(FRAME_BYTES + 1))
    assert verify(pack(prefix).path).size_bytes > FRAME_BYTES


@pytest.mark.parametrize("size", [10, FRAME_BYTES])
def test_what_conda_has_not_relocated_stays(size: int, prefix: Path) -> None:
    text = os.fsencode(prefix) + b"/lib " + b"x" * size
    install(prefix, "text", text)
    assert relocated(read_index(pack(prefix).path)) == []
    (prefix / "text").write_bytes(text + b"edited")
    result = pack(prefix)
    assert relocated(read_index(result.path)) == [b"text"]
    assert result.warnings == ("1 files differ from their conda packages; they are packed as they are: text",)


@pytest.mark.parametrize("size", [10, FRAME_BYTES])
def test_libraries_that_load_others_from_elsewhere(
    size: int, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envpack.pack.scan, "folders_outside", lambda data, names: [b"/apps/mpi/lib"])
    monkeypatch.setattr(envpack.pack.scan, "is_shared", lambda kind: True)
    (prefix / "mpi.so").write_bytes(b"\x7fELF" + b"x" * size)
    (warning,) = pack(prefix).warnings
    assert (
        warning.startswith("1 libraries load others from folders that are not packed") and "mpi.so" in warning
    )


def test_a_malformed_record_is_named(prefix: Path) -> None:
    install(prefix, "file", b"content", sha256="nonsense")
    with pytest.raises(
        BrokenEnvironmentError, match=r"conda's record .*/big-1-0\.json cannot be read: ValueError"
    ):
        pack(prefix)


def test_the_index_of_an_archive_that_was_replaced_is_read_again(prefix: Path) -> None:
    path = pack(prefix).path
    before = read_index(path)
    older = OlderArchive(path, "", before)
    assert older.index is before
    older.close()
    (prefix / "new").write_bytes(b"new")
    pack(prefix).path.replace(path)
    older = OlderArchive(path, "", before)
    assert older.index.paths == [*before.paths, b"new"]
    older.close()


def test_an_older_archive_that_cannot_be_read(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = OlderArchive(pack(prefix).path, "", None)

    def stale(*_: object) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "pread", stale)
    with pytest.raises(CorruptArchiveError, match=r"cannot read frame 0: .*Stale file handle"):
        older.packed(0)
    older.close()


@pytest.mark.parametrize(
    ("name", "mode", "kinds"),
    [
        (b"x.so.1", 0o644, [FILE, FILE, HARDLINK]),
        (b"program", 0o755, [FILE, FILE, HARDLINK]),
        (b"x.txt", 0o644, [FILE, HARDLINK, HARDLINK]),
    ],
)
def test_libraries_with_several_names(name: bytes, mode: int, kinds: list[int]) -> None:
    """A run path that is made relative in one folder leads elsewhere in another."""
    paths = [b"lib/" + name, b"lib/a/" + name, b"lib/a/second-" + name]
    members = arrange(Member(path, FILE, mode, relocation="unknown", inode=(1, 2)) for path in paths)
    assert [member.kind for member in members if member.path in paths] == kinds
