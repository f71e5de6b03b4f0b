from pathlib import Path

import pytest

from envpack.common.prefix import kind_of


@pytest.mark.parametrize(
    ("folders", "files", "kind"),
    [
        (["conda-meta"], [], "conda"),
        ([], ["pyvenv.cfg"], "venv"),
        (["conda-meta"], ["pyvenv.cfg"], "conda"),
        (["pyvenv.cfg"], ["conda-meta"], None),
        ([], [], None),
    ],
)
def test_kind_of(folders: list[str], files: list[str], kind: str | None, tmp_path: Path) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    for name in files:
        (tmp_path / name).touch()
    assert kind_of(tmp_path) == kind
