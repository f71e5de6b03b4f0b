"""The command: results on stdout, all else on stderr, exit statuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from envpack_trees import make_venv, stages

from envpack.archive.encoding import read_index
from envpack.cli import main
from envpack.pack.packing import pack
from envpack.stage.marker import marker_path
from envpack.stage.staging import stage

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_venv(tmp_path_factory.mktemp("cli") / "env")


@pytest.fixture(scope="module")
def archive(prefix: Path) -> Path:
    return pack(prefix, prefix.parent / "env.tar.zst", level=1).path


def envpack(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "envpack", *map(os.fspath, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, env=environment)


def test_pack_stage_verify_gc(prefix: Path, tmp_path: Path) -> None:
    home, root = tmp_path / "home", tmp_path / "root"
    root.mkdir()
    variables = {"MPIBOOT_HOME": os.fspath(home), "MPIBOOT_STAGE_ROOT": os.fspath(root)}
    packed = envpack("pack", "--prefix", prefix, **variables)
    path = Path(packed.stdout.rstrip("\n"))
    assert (packed.returncode, packed.stderr) == (0, "") and path.parent.parent == home / "packs"
    staged = envpack("stage", path, **variables)
    staged_prefix = Path(staged.stdout.rstrip("\n"))
    index = read_index(path)
    assert (staged.returncode, staged.stderr) == (0, "")
    assert staged_prefix == root / f"mpiboot-{os.geteuid()}" / f"env-{index.pack_id[:16]}"
    for what in (path, staged_prefix):
        verified = envpack("verify", what)
        files = len(index) - len(index.folders)
        expected = f"{what}: {files} files, {index.size_bytes} bytes, pack id {index.pack_id}\n"
        assert (verified.returncode, verified.stdout, verified.stderr) == (0, expected, "")
    collected = envpack("gc", "--older-than", "0s", **variables)
    assert (collected.returncode, collected.stdout, collected.stderr) == (0, f"{staged_prefix}\n", "")


def test_a_path_that_is_no_utf_8(prefix: Path, tmp_path: Path) -> None:
    output = os.fsencode(tmp_path) + b"/\xff.tar.zst"
    command = [sys.executable, "-m", "envpack", "pack", "--prefix", prefix, "--output", output]
    done = subprocess.run(
        command, capture_output=True, cwd=CHECKOUT, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, output + b"\n", b"")


def test_json(prefix: Path, archive: Path, tmp_path: Path) -> None:
    packed = json.loads(envpack("pack", "--prefix", prefix, "--output", archive, "--json").stdout)
    index = read_index(archive)
    assert packed == {
        "path": os.fspath(archive), "pack_id": index.pack_id, "name": "env", "size_bytes": archive.stat().st_size,
        "raw_bytes": index.size_bytes, "files": len(index) - len(index.folders), "seconds": packed["seconds"],
        "reused": True, "kind": "venv", "warnings": [], "excluded": [], "excluded_bytes": 0, "frames_copied": 0,
    }  # fmt: skip
    staged = json.loads(envpack("stage", archive, "--root", tmp_path, "--jobs", "2", "--json").stdout)
    assert staged == {
        "prefix": f"{tmp_path}/mpiboot-{os.geteuid()}/env-{index.pack_id[:16]}", "pack_id": index.pack_id,
        "reused": False, "seconds": staged["seconds"], "size_bytes": index.size_bytes, "files": packed["files"],
        "bytes_read": archive.stat().st_size, "transport": "direct", "jobs": 2, "host": os.uname().nodename,
        "linked": 0, "repaired": 0, "evicted": [], "mb_per_s": staged["mb_per_s"],
    }  # fmt: skip


def test_the_active_environment_is_the_default(prefix: Path, tmp_path: Path) -> None:
    """By mpiboot's rule: the environment of the Python that runs, whatever else is activated."""
    archive = tmp_path / "a.tar.zst"
    command = [sys.executable, "-m", "envpack", "pack", "--output", archive]
    base = Path(sys.base_prefix, "bin", "python3")
    site = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    variables = {"CONDA_PREFIX": "/nonexistent", "VIRTUAL_ENV": os.fspath(prefix), "PYTHONPATH": site}
    subprocess.run([base, *command[1:]], check=True, cwd=CHECKOUT, env={**os.environ, **variables})
    assert read_index(archive).prefix == os.fspath(prefix)
    without = {key: value for key, value in os.environ.items() if key not in ("CONDA_PREFIX", "VIRTUAL_ENV")}
    done = subprocess.run(
        [base, *command[1:]],
        cwd=CHECKOUT,
        env={**without, "PYTHONPATH": site},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "no environment is active" in done.stderr and "--prefix" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack", "--prefix", "/proc/none"], "no environment /proc/none: there is no such folder"),
        (["stage", "/proc/none"], "cannot open the archive /proc/none on "),
        (["verify", "/proc/none"], "cannot open the archive /proc/none on "),
        (["verify", "/"], "/ on "),
    ],
)
def test_a_named_failure_is_one_line_and_status_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"envpack: {message}") and err.count("\n") == 1


def test_a_home_that_cannot_be_made_is_named_with_the_remedy(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "file/home"))
    assert main(["pack", "--prefix", str(prefix)]) == 1
    assert capsys.readouterr().err == (
        f"envpack: cannot write {tmp_path}/file/home on {os.uname().nodename}: Not a directory. "
        "Set MPIBOOT_HOME to a folder on the shared file system that you can write, or --output\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["stage"],
        ["pack", "--level", "0"],
        ["pack", "--level", "20"],
        ["pack", "--lev", "3"],
        ["stage", "x", "--jobs", "0"],
        ["gc", "--older-than", "soon"],
        ["gc", "--max-size", "-1"],
        ["gc", "--packs", "--older-than", "1d"],
    ],
)
def test_bad_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("usage: envpack")


def test_warnings_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = make_venv(tmp_path / "env")
    os.mkfifo(prefix / "pipe")
    for _ in range(2):
        assert main(["pack", "--prefix", str(prefix), "--output", str(tmp_path / "a.tar.zst")]) == 0
        out, err = capsys.readouterr()
        assert out == f"{tmp_path}/a.tar.zst\n"
        assert err == "envpack: warning: not packed, as neither file, folder nor link: pipe\n"


def test_what_is_left_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "home"))
    prefix = make_venv(tmp_path / "env")
    for n in range(12):
        (prefix / "share" / f"note-{n:02}").write_bytes(bytes(100_000))
    command = ["pack", "--prefix", str(prefix), "--exclude", "share/note-*"]
    for _ in range(2):
        assert main([*command, "--level", "1"]) == 0
        out, err = capsys.readouterr()
        assert Path(out.rstrip("\n")).is_file()
        names = ", ".join(f"share/note-{n:02}" for n in range(10))
        assert err.splitlines()[-1] == f"envpack: left out: 12 paths, 1.2 MB: {names}, …"
    assert main([*command, "--json", "--force"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["reused"], done["excluded_bytes"]) == (False, 1_200_000)
    assert done["excluded"] == [f"share/note-{n:02}" for n in range(12)]
    # The archive without --exclude is another one, and the newest.
    assert main(["pack", "--prefix", str(prefix), "--level", "1"]) == 0
    capsys.readouterr()
    assert main(["gc", "--packs"]) == 0
    assert capsys.readouterr().out == f"{done['path']}\n"


def test_another_archive_than_expected(archive: Path, tmp_path: Path) -> None:
    done = envpack("stage", archive, "--root", tmp_path, "--expect", "0" * 64)
    assert (done.returncode, done.stdout) == (
        1,
        "",
    ) and "is not the expected archive" in done.stderr
    assert stages(tmp_path) == []


def test_times_and_sizes(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = stage(archive, tmp_path).prefix
    os.utime(marker_path(prefix), (time.time() - 7200,) * 2)
    for options in (["--older-than", "3 h"], ["--max-size", "1G"]):
        assert main(["gc", "--root", str(tmp_path), *options]) == 0
        assert capsys.readouterr().out == ""
    assert main(["gc", "--root", str(tmp_path), "--max-size", "0"]) == 0
    assert capsys.readouterr().out == f"{prefix}\n"


def test_progress_on_a_terminal_only(archive: Path, tmp_path: Path) -> None:
    """`script` gives the command a terminal."""
    if shutil.which("script") is None:
        pytest.skip("no script command")
    command = f"{sys.executable} -m envpack stage {archive} --root {tmp_path} > {tmp_path}/out"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], capture_output=True, text=True, cwd=CHECKOUT
    )
    assert done.returncode == 0 and "staging" in done.stdout
    assert re.fullmatch(r"/.*/env-[0-9a-f]{16}\n", (tmp_path / "out").read_text())


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["gc"], {"MPIBOOT_STAGE_ROOT": "x"}, "envpack: MPIBOOT_STAGE_ROOT: 'x' is a relative path, "),
        (["gc", "--packs"], {"MPIBOOT_HOME": "x"}, "envpack: MPIBOOT_HOME: 'x' is a relative path, "),
        (["gc", "--root", "~no-such-user"], {}, "envpack gc: error: argument --root: '~no-such-user': there is no "),
        (["pack", "--output", "$NONE"], {}, "envpack pack: error: argument --output: '$NONE': the variable NONE is "),
    ],
)  # fmt: skip
def test_a_path_that_cannot_be_meant(arguments: list[str], variables: dict[str, str], message: str) -> None:
    done = envpack(*arguments, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(message)


def test_a_path_in_quotes_is_expanded(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    done = envpack("verify", "~/root", HOME=os.fspath(tmp_path))
    assert f"{tmp_path}/root" in done.stderr
