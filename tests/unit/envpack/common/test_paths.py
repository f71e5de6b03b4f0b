"""Paths in options and variables: expanded or refused."""

import os
import pwd

import pytest

from envpack.common.paths import expand, typed_path
from envpack.common.places import default_home, default_stage_root
from envpack.errors import MalformedValueError

ME = pwd.getpwuid(os.getuid())
ENVIRON = {"HOME": "/home/me", "SCRATCH": "/scratch/me", "EMPTY": "", "TILDE": "~", "DOLLAR": "/a$SCRATCH"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b", "/a/b"),
        ("a b/'c\"\n", "a b/'c\"\n"),
        ("~", "/home/me"),
        ("~/x", "/home/me/x"),
        (f"~{ME.pw_name}/x", f"{ME.pw_dir}/x"),
        ("/a/~/x~", "/a/~/x~"),
        ("$SCRATCH/x", "/scratch/me/x"),
        ("${SCRATCH}x", "/scratch/mex"),
        ("~/$SCRATCH", "/home/me//scratch/me"),
        ("/a$EMPTY/b", "/a/b"),
        ("$TILDE/$DOLLAR", "~//a$SCRATCH"),
        ("/a$/$1/$$/$(x)/${x y}", "/a$/$1/$$/$(x)/${x y}"),
    ],
)
def test_expanded_as_by_a_shell(path, expected):
    assert expand(path, ENVIRON) == expected


def test_a_user_without_the_variable_HOME_has_a_home_folder():
    assert expand("~/x", {}) == f"{ME.pw_dir}/x"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("$NONE/x", "'$NONE/x': the variable NONE is not set. Write the path without it"),
        ("~no-such-user/x", "'~no-such-user/x': there is no user 'no-such-user'. Write an absolute path"),
    ],
)
def test_what_cannot_be_expanded_is_refused(path, message):
    with pytest.raises(MalformedValueError) as error:
        expand(path, ENVIRON)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("function", "variable"), [(default_home, "MPIBOOT_HOME"), (default_stage_root, "MPIBOOT_STAGE_ROOT")]
)
def test_variables_with_a_path(function, variable):
    for value, expected in {"~/x": "/home/me/x", "$SCRATCH/x": "/scratch/me/x", "/a b": "/a b"}.items():
        assert str(function({**ENVIRON, variable: value})) == expected
    assert function({**ENVIRON, variable: ""}) == function(ENVIRON)
    for value, problem in {
        "x": "'x' is a relative path, which means another file in each working directory",
        "$NONE": "'$NONE': the variable NONE is not set",
    }.items():
        with pytest.raises(MalformedValueError) as error:
            function({**ENVIRON, variable: value})
        assert error.value.problem == f"{variable}: {problem}"


def test_a_typed_path_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [typed_path(path) for path in ("x", "./x", "../x", "/y//z/")] == [
        *(f"{tmp_path}/x", f"{tmp_path}/x", f"{tmp_path}/../x", "/y/z")
    ]
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(MalformedValueError, match=r"the working directory no longer exists\. Write an abs"):
        typed_path("x")


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(MalformedValueError, match="is not a path"):
        typed_path(path)
