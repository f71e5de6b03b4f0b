from __future__ import annotations

from pathlib import Path

from envpack.archive.damage import is_damaged, note_damage


def test_damage_is_remembered_where_it_can_be_written(tmp_path: Path) -> None:
    archive = tmp_path / "env.tar.zst"
    assert not is_damaged(archive)
    for _ in range(2):
        note_damage(archive)
        assert is_damaged(archive)
    note_damage(tmp_path / "none" / "env.tar.zst")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["env.tar.zst.damaged"]
