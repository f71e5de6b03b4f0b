from pathlib import Path

import pytest

from envpack.common.prefix import active_environment, kind_of


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


@pytest.mark.parametrize(
    ("environ", "running", "base", "expected"),
    [
        ({"CONDA_PREFIX": "/c", "VIRTUAL_ENV": "/w"}, "/v", "/usr", Path("/v")),
        ({"CONDA_PREFIX": "/c", "VIRTUAL_ENV": "/w"}, "/usr", "/usr", Path("/w")),
        ({"CONDA_PREFIX": "/c"}, "/usr", "/usr", Path("/c")),
        ({}, "/usr", "/usr", None),
    ],
)
def test_active_environment(environ: dict[str, str], running: str, base: str, expected: Path | None) -> None:
    assert active_environment(environ, running, base) == expected
