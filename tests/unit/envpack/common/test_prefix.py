import json
from pathlib import Path

import pytest

from envpack.common.prefix import active_environment, kind_of, source_of


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


# One rule for all commands: `envpack pack`, `mpiboot submit`, `doctor` and `boot`. Which Python runs the command (its
# prefix, and that of its base), in a shell with which environments activated and which PATH -> the environment.
# `conda` and `conda/envs/x` have conda's records, `usr` has none; `staged` is a staged copy of `v`.
@pytest.mark.parametrize(
    ("running", "base", "venv", "conda", "path", "expected"),
    [
        # The Python that runs the command, whatever is activated.
        ("v", "usr", None, None, "usr", "v"),
        ("v", "usr", "w", "conda", "w conda usr", "v"),
        ("v", "conda", "w", "conda", "w conda usr", "v"),
        ("conda", "conda", None, "conda", "conda usr", "conda"),
        ("conda", "conda", None, None, "usr", "conda"),
        # The system's Python belongs to no environment.
        ("usr", "usr", None, None, "usr", None),
        ("usr", "usr", "w", None, "w usr", "w"),
        ("usr", "usr", None, "conda", "conda usr", "conda"),
        ("usr", "usr", "w", "conda", "w conda usr", "w"),
        ("usr", "usr", "w", "conda", "conda w usr", "conda"),
        ("usr", "usr", "w", "conda", "usr", "w"),
        # A venv over conda's base, which has the command; and one over another environment of conda's.
        ("conda", "conda", "w", "conda", "w conda usr", "w"),
        ("conda/envs/x", "conda/envs/x", "w", "conda/envs/x", "w conda/envs/x usr", "w"),
        ("link-to-conda", "link-to-conda", "w", "conda", "w conda usr", "w"),
        # A venv below conda: activated before it, or another one's variable is left.
        ("conda", "conda", "w", "conda", "conda w usr", "conda"),
        ("conda", "conda", "w", "conda", "conda usr", "conda"),
        # An explicit path to the command of another environment.
        ("conda/envs/x", "conda/envs/x", "w", "conda", "w conda usr", "conda/envs/x"),
        ("conda", "conda", "w", "conda/envs/x", "w conda/envs/x usr", "conda"),
        # A staged prefix stands for its source, however it is found.
        ("staged", "staged/.envpack-base", "staged", None, "staged usr", "v"),
        ("usr", "usr", "staged", None, "staged usr", "v"),
    ],
)
def test_active_environment(
    running: str,
    base: str,
    venv: str | None,
    conda: str | None,
    path: str,
    expected: str | None,
    tmp_path: Path,
) -> None:
    for name in ("conda", "conda/envs/x"):
        (tmp_path / name / "conda-meta").mkdir(parents=True)
    (tmp_path / "link-to-conda").symlink_to("conda")
    write_marker(tmp_path / "staged", tmp_path / "staged", tmp_path / "v")
    environ = {"PATH": ":".join(f"{tmp_path}/{name}/bin" for name in path.split())}
    for name, value in (("VIRTUAL_ENV", venv), ("CONDA_PREFIX", conda)):
        if value:
            environ[name] = f"{tmp_path}/{value}"
    found = active_environment(environ, f"{tmp_path}/{running}", f"{tmp_path}/{base}")
    assert found == (None if expected is None else tmp_path / expected)


def write_marker(folder: Path, prefix: Path, source: Path) -> None:
    """Write the marker of a staged prefix, as envpack.stage.marker does."""
    (folder / ".envpack").mkdir(parents=True)
    marker = {"prefix": str(prefix), "source": str(source)}
    (folder / ".envpack/marker.json").write_text(json.dumps(marker))


def test_a_copy_of_a_staged_prefix_is_an_environment_of_its_own(tmp_path: Path) -> None:
    write_marker(tmp_path / "staged", tmp_path / "staged", tmp_path / "v")
    write_marker(tmp_path / "copy", tmp_path / "staged", tmp_path / "v")
    assert source_of(tmp_path / "staged") == tmp_path / "v"
    assert source_of(tmp_path / "copy") == tmp_path / "copy"
    (tmp_path / "staged/.envpack/marker.json").write_text("[")
    assert source_of(tmp_path / "staged") == tmp_path / "staged"
