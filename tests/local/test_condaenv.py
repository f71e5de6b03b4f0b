"""The conda environments that tests use: real to conda-pack, whole by themselves, and theirs alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import conda_pack
import oldglibc
import pytest


def python(prefix: Path, code: str) -> str:
    argv = [str(prefix / "bin" / "python"), "-c", code]
    clean = {"PATH": "/usr/bin:/bin"}
    return subprocess.run(
        argv, env=clean, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_conda_pack_knows_its_prefixes(conda_env_small: Path) -> None:
    files = conda_pack.CondaEnv.from_prefix(str(conda_env_small)).files
    modes = {file.target: file.file_mode for file in files if file.prefix_placeholder}
    expected = {
        "bin/mpiboot-fixture": "text",
        "etc/conda/activate.d/mpiboot-fixture.sh": "text",
        "share/mpiboot-fixture/prefix.bin": "binary",
    }
    assert expected.items() <= modes.items()
    assert len(files) > 1500


def test_its_files_name_their_prefix(conda_env_small: Path) -> None:
    assert (
        python(conda_env_small, "import sys; print(sys.prefix, sys.base_prefix)").split()
        == [str(conda_env_small)] * 2
    )
    for script in ("mpiboot-fixture", "pygmentize"):
        first = (conda_env_small / "bin" / script).read_text().splitlines()[0]
        assert first == f"#!{conda_env_small}/bin/python"
    # conda keeps a binary's size: what a string loses in length follows it as NULs.
    binary = (conda_env_small / "share/mpiboot-fixture/prefix.bin").read_bytes()
    share, prefix, rest = (
        binary.replace(b"\0\1", b"", 1).split(b"\0", 1)[0],
        str(conda_env_small).encode(),
        binary[-1:],
    )
    assert (share, rest) == (prefix + b"/share", b"\2")


def test_its_python_lacks_what_an_old_glibc_lacks(conda_env_small: Path) -> None:
    show = "import sys; print(*(n for m in sys.argv[1:] for n in dir(__import__(m))))"
    modules = [*oldglibc.ABSENT, *oldglibc.PUBLIC.values()]
    argv = [str(conda_env_small / "bin" / "python"), "-I", "-S", "-c", show, *modules]
    names = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert {"open", "preadv", "SIGTERM", "AF_UNIX", "F_DUPFD_CLOEXEC"} <= set(names)
    assert {name for absent in oldglibc.ABSENT.values() for name in absent}.intersection(names) == set()


def test_its_bytecode_is_valid(conda_env_small: Path) -> None:
    argv = [str(conda_env_small / "bin" / "python"), "-v", "-c", "import json, asyncio, pygments"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stderr
    assert "matches" in said
    assert "bytecode is stale" not in said


@pytest.mark.skipif(
    sys.base_prefix.startswith("/usr"), reason="the base is a part of the system, for all to read"
)
def test_it_does_without_the_interpreter_it_was_made_of(conda_env_small: Path) -> None:
    base = sys.base_prefix.encode()
    naming = [
        str(path.relative_to(conda_env_small))
        for path in conda_env_small.rglob("*")
        if path.is_file() and not path.is_symlink() and base in path.read_bytes()
    ]
    assert naming == []
    mapped = python(conda_env_small, "import ssl, ctypes, psutil; print(open('/proc/self/maps').read())")
    assert not [line for line in mapped.splitlines() if sys.base_prefix in line]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user: run as root")
def test_everybody_may_read_and_run_it(conda_env_small: Path) -> None:
    closed = [
        path
        for path in conda_env_small.rglob("*")
        if not path.is_symlink() and path.stat().st_mode & 0o004 == 0 and "conda-meta" not in path.parts
    ]
    assert closed == []
