"""The environment is activated as `conda activate` does it: variables of packages, of the environment, then scripts."""

import json
import logging
import re

import pytest

from mpiboot.errors import StageError
from mpiboot.protocol import activation

PLAIN = {"PATH": "/usr/bin:/bin", "HOME": "/home/a"}


@pytest.fixture
def prefix(tmp_path):
    return make_prefix(tmp_path / "envs" / "analysis")


def make_prefix(folder):
    (folder / "conda-meta").mkdir(parents=True)
    for name in ("activate.d", "deactivate.d", "env_vars.d"):
        (folder / "etc/conda" / name).mkdir(parents=True)
    return folder


def declare(prefix, package=None, **environment):
    if package is not None:
        (prefix / "etc/conda/env_vars.d/package.json").write_text(json.dumps(package))
    (prefix / "conda-meta/state").write_text(json.dumps({"env_vars": environment}))


def added(environ, source, prefix):
    """Return what the activation has added or changed, without the names of the active environment."""
    found = activation.activated(environ, source, prefix)
    return {
        name: value
        for name, value in found.items()
        if environ.get(name) != value
        and not name.startswith(("CONDA_", "PYTHONNOUSERSITE", "PWD", "SHLVL", "_"))
    }


def test_the_variables_that_name_the_environment(prefix):
    environ = PLAIN | {
        "VIRTUAL_ENV": "/v",
        "CONDA_PREFIX_1": "/opt/conda",
        "CONDA_PROMPT_MODIFIER": "(base) ",
    }
    assert activation.activated(environ, prefix, prefix) == PLAIN | {
        "CONDA_PREFIX": str(prefix),
        "CONDA_DEFAULT_ENV": "analysis",
        "CONDA_SHLVL": "1",
        "PYTHONNOUSERSITE": "1",
    }


def test_condas_name_of_an_environment(tmp_path, prefix):
    (tmp_path / "condabin").mkdir()
    assert [activation.environment_name(path) for path in (tmp_path, prefix, tmp_path / "env")] == [
        "base",
        "analysis",
        None,
    ]


def test_variables_of_packages_then_of_the_environment_then_scripts(prefix):
    (prefix / "etc/conda/env_vars.d/a.json").write_text(
        '{"A": "package a", "B": "package a", "C": "package a"}'
    )
    (prefix / "etc/conda/env_vars.d/b.json").write_text('{"B": "package b", "C": "package b"}')
    (prefix / "conda-meta/state").write_text('{"env_vars": {"C": "environment", "D": "environment"}}')
    (prefix / "etc/conda/activate.d/a.sh").write_text('export SEEN="$A, $B, $C, $D"; export D=script\n')
    assert added(PLAIN, prefix, prefix) == {
        "A": "package a",
        "B": "package b",
        "C": "environment",
        "D": "script",
        "SEEN": "package a, package b, environment, environment",
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"),
        ("", ""),
        ('a\'b "c"\n$HOME', 'a\'b "c"\n$HOME'),
        (1, "1"),
        (0.5, "0.5"),
        (True, "True"),
        (None, None),
        ("***unset***", "of the user"),  # conda leaves the variable alone
    ],
)
def test_values_as_conda_writes_them(prefix, value, expected):
    declare(prefix, package={"X": "of the package"}, X=value)
    assert activation.activated(PLAIN | {"X": "of the user"}, prefix, prefix).get("X") == expected


@pytest.mark.parametrize("file", ["conda-meta/state", "etc/conda/env_vars.d/package.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"\xff", "invalid start byte"),
        (b"[]", "no attribute|no JSON object"),
        (b'{"env_vars": 3, "A=B": "x"}', "no JSON object|'A=B' cannot be a variable"),
    ],
)
def test_a_damaged_file_is_named_and_passed_by(prefix, caplog, file, content, reason):
    (prefix / file).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert added(PLAIN, prefix, prefix) == {}
    [record] = caplog.records
    assert str(prefix / file) in record.getMessage()
    assert record.exc_info is None and re.search(reason, record.getMessage())


def test_what_the_user_has_changed_since_the_activation_stays(prefix):
    declare(prefix, A="environment", B="environment")
    assert added(PLAIN | {"CONDA_PREFIX": str(prefix), "A": "mine"}, prefix, prefix) == {"B": "environment"}


def test_without_activation_the_environments_values_count(prefix):
    declare(prefix, A="environment")
    assert added(PLAIN | {"A": "of the shell"}, prefix, prefix) == {"A": "environment"}


def test_another_environment_is_deactivated(tmp_path, prefix):
    base = make_prefix(tmp_path / "base")
    declare(base, package={"P": "base"}, GDAL_DATA="/base/gdal", OLD="base", CHANGED="base")
    (base / "etc/conda/deactivate.d/a.sh").write_text("unset SCRIPT; export ORDER=$ORDER.a\n")
    (base / "etc/conda/deactivate.d/b.sh").write_text("export ORDER=b\n")
    environ = PLAIN | {
        "CONDA_PREFIX": str(base),
        "CONDA_SHLVL": "1",
        "P": "base",
        "GDAL_DATA": "/base/gdal",
        "OLD": "base",
        "CHANGED": "mine",
        "SCRIPT": "base",
        "__CONDA_SHLVL_0_OLD": "before",
    }
    found = activation.activated(environ, prefix, prefix)
    names = ("P", "GDAL_DATA", "OLD", "CHANGED", "SCRIPT", "ORDER", "__CONDA_SHLVL_0_OLD", "CONDA_PREFIX")
    assert {name: found.get(name) for name in names} == {
        "P": None,
        "GDAL_DATA": None,
        "OLD": "before",
        "CHANGED": "mine",
        "SCRIPT": None,
        "ORDER": "b.a",
        "__CONDA_SHLVL_0_OLD": None,
        "CONDA_PREFIX": str(prefix),
    }


def test_another_environments_script_that_fails_costs_nothing(tmp_path, prefix, caplog):
    base = make_prefix(tmp_path / "base")
    (base / "etc/conda/deactivate.d/a.sh").write_text("exit 3\n")
    assert added(PLAIN | {"CONDA_PREFIX": str(base)}, prefix, prefix) == {}
    assert "ended with status 3" in caplog.text


def test_a_venv_over_conda_keeps_what_condas_environment_has_set(tmp_path):
    base = make_prefix(tmp_path / "base")
    declare(base, PROJ_DATA="/base/proj")
    venv = tmp_path / "venv"
    venv.mkdir()
    environ = PLAIN | {"CONDA_PREFIX": str(base), "CONDA_SHLVL": "1", "PROJ_DATA": "/base/proj"}
    assert activation.activated(environ, venv, venv) == PLAIN | {
        "PROJ_DATA": "/base/proj",
        "VIRTUAL_ENV": str(venv),
        "PYTHONNOUSERSITE": "1",
    }


def test_scripts_are_sourced_in_order(prefix):
    scripts = prefix / "etc/conda/activate.d"
    (scripts / "a.sh").write_text('echo noise; export GREETING="two\nlines"; [ -n "$UNSET" ] && true\n')
    (scripts / "b.sh").write_text('export GREETING="$GREETING of $CONDA_PREFIX"; read -r line\n')
    assert added(PLAIN, prefix, prefix) == {"GREETING": f"two\nlines of {prefix}"}


def test_what_bash_sources_before_a_script_changes_nothing(tmp_path, prefix):
    start = tmp_path / "bashrc"
    start.write_text("echo Welcome to the site\nexport PATH=/elsewhere CONDA_PREFIX=/opt/conda\nset -u\n")
    (prefix / "etc/conda/activate.d/a.sh").write_text('[ -z "$UNSET" ] && export SEEN=yes\n')
    environ = PLAIN | {"BASH_ENV": str(start), "SHELLOPTS": "errexit:nounset"}
    found = activation.activated(environ, prefix, prefix)
    assert added(environ, prefix, prefix) == {"SEEN": "yes"}
    assert found["CONDA_PREFIX"] == str(prefix)
    assert environ.items() <= found.items()


def test_a_script_that_ends_the_shell_is_named(tmp_path):
    prefix = make_prefix(tmp_path / "my env")
    scripts = prefix / "etc/conda/activate.d"
    (scripts / "a.sh").write_text("echo no licence >&2; exit 3\n")
    with pytest.raises(StageError) as error:
        activation.activated(PLAIN, prefix, prefix)
    assert str(error.value) == (
        f"the scripts in {scripts} ended with status 3: no licence. "
        f"Find the script that exits: conda activate '{prefix}'"
    )
