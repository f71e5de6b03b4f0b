"""`envpack verify`: what is damaged is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from envpack_trees import SITE

import envpack.stage.marker
from envpack.errors import CorruptArchiveError, StageFailedError
from envpack.stage.verify import verify


def test_what_is_whole(archives: list[Path], staged: list[Path]) -> None:
    of_archive, of_prefix = verify(archives[0]), verify(staged[0])
    assert of_archive == of_prefix._replace(path=archives[0])
    assert of_archive.files > 10 and of_archive.size_bytes > 300_000


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "share" / "filler").write_bytes(bytes(300_000)), "share/filler has another content"),
        (lambda p: (p / "share" / "filler").write_bytes(b"short"), "share/filler has another content"),
        (lambda p: (p / "share" / "filler").unlink(), "share/filler is missing"),
        (lambda p: (p / "bin" / "demo").write_text("#!/bin/false"), "bin/demo does not name this prefix"),
        (
            lambda p: (p / "bin" / "python").unlink() or (p / "bin" / "python").symlink_to("x"),
            "points elsewhere",
        ),
        (lambda p: (p / "bin" / "python").unlink() or (p / "bin" / "python").touch(), "points elsewhere"),
        (
            lambda p: (p / SITE / "demo/data/hollow").rmdir() or (p / SITE / "demo/data/hollow").touch(),
            "is not a folder",
        ),
        (lambda p: (p / "pyvenv.cfg").unlink() or (p / "pyvenv.cfg").mkdir(), "pyvenv.cfg is not a file"),
        (lambda p: envpack.stage.marker.index_path(p).unlink(), "cannot be read"),
        (lambda p: envpack.stage.marker.marker_path(p).unlink(), "is not a staged prefix"),
    ],
    ids=range(10),
)
def test_a_damaged_prefix(damage, message: str, staged: list[Path]) -> None:  # type: ignore[no-untyped-def]
    damage(staged[0])
    with pytest.raises(StageFailedError, match=f"{message}.* stage the archive"):
        verify(staged[0])


def test_a_damaged_index_of_a_prefix(staged: list[Path]) -> None:
    path = envpack.stage.marker.index_path(staged[0])
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptArchiveError, match="index differs from its checksum"):
        verify(staged[0])
