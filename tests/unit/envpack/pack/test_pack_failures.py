"""Every `OSError` of a pack is a named error with host, path and remedy, and leaves nothing half-made."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from envpack_trees import make_venv

import envpack.pack.packing
from envpack.errors import BrokenEnvironmentError, EnvpackError, NoSpaceError, PackFailedError
from envpack.pack.collect import Collected
from envpack.pack.failures import named_errors
from envpack.pack.packing import pack
from envpack.pack.walk import Walk

pytestmark = pytest.mark.usefixtures("small_base")
HOST = os.uname().nodename
CHECKOUT = Path(__file__).resolve().parents[4]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MPIBOOT_HOME", os.fspath(tmp_path / "home"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return make_venv(tmp_path / "env")


def mounted(mount: str, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `envpack pack` in a mount namespace of its own, then list the folder."""
    packing = f"{sys.executable} -m envpack pack \"$@\"; status=$?; ls -A '{folder}'; exit $status"
    command = f"mount {mount} && {{ {packing}; }}"
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", command, "sh", *map(os.fspath, arguments)],
        capture_output=True, text=True, cwd=CHECKOUT,
    )  # fmt: skip


@as_root
def test_a_full_file_system(prefix: Path, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    done = mounted(
        f"-t tmpfs -o size=2m none {folder}", folder, "--prefix", prefix, "--output", folder / "a.tar.zst"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"envpack: cannot write {folder} on {HOST}: No space left on device. Choose another place with --output, or "
        "remove old archives: envpack gc --packs\n"
    )


@as_root
def test_a_read_only_home(prefix: Path, tmp_path: Path) -> None:
    """An archive that is good is used; a new one cannot be made."""
    home = tmp_path / "home"
    command = [sys.executable, "-m", "envpack", "pack", "--prefix", prefix, "--level", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=True)
    path = Path(done.stdout.rstrip("\n"))
    before = sorted(home.rglob("*"))
    mount = f"--bind {home} {home} && mount -o remount,ro,bind {home}"
    done = mounted(mount, home, "--prefix", prefix)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\npacks\n", "")
    (prefix / "share" / "new").touch()
    done = mounted(mount, home, "--prefix", prefix)
    assert (done.returncode, done.stdout) == (1, "packs\n")
    assert done.stderr == (
        f"envpack: cannot write {path.parent}/.lock on {HOST}: Read-only file system. Set MPIBOOT_HOME to a folder on "
        "the shared file system that you can write, or --output\n"
    )
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("output", ["a.tar.zst", "../out/a.tar.zst"])
def test_a_limit_of_file_sizes(
    output: str, prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(PackFailedError) as raised:
            pack(prefix, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(raised.value) == (
        f"cannot write {folder} on {HOST}: File too large. Allow larger files: ulimit -f unlimited"
    )
    assert list(folder.iterdir()) == []


def test_a_name_that_is_too_long(prefix: Path, tmp_path: Path) -> None:
    output = tmp_path / ("a" * 256)
    with pytest.raises(PackFailedError) as raised:
        pack(prefix, output)
    assert str(raised.value).startswith(f"cannot write {output} on {HOST}: File name too long. ")


def test_a_prefix_that_cannot_be_read(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kind_of(prefix: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(prefix / "conda-meta"))

    monkeypatch.setattr(envpack.pack.packing, "kind_of", kind_of)
    with pytest.raises(BrokenEnvironmentError) as raised:
        pack(prefix)
    assert str(raised.value) == (
        f"cannot read {prefix} on {HOST}: Permission denied. Make it readable: ls -ld {prefix}"
    )


def test_a_file_that_vanishes_meanwhile(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = prefix / "share" / "temporary"
    file.touch()
    collect = envpack.pack.packing.collect

    def late(walk: Walk) -> Collected:
        found = collect(walk)
        file.unlink()
        return found

    monkeypatch.setattr(envpack.pack.packing, "collect", late)
    with pytest.raises(BrokenEnvironmentError) as raised:
        pack(prefix, tmp_path / "a.tar.zst")
    assert str(raised.value) == (
        f"cannot read {file} on {HOST}: No such file or directory. Pack again when nothing installs into the "
        "environment, or removes files from it"
    )
    assert not list(tmp_path.glob("*.zst")) and not list(tmp_path.glob(".envpack*"))


PREFIX, FOLDER = Path("/home/u/my env"), Path("/home/u/packs/x")
AGAIN = "Pack again when nothing installs into the environment, or removes files from it"
ELSEWHERE = "Set MPIBOOT_HOME to a folder on the shared file system that you can write, or --output"
ROOM = "Choose another place with --output, or remove old archives: envpack gc --packs"
VANISHED = "Something has removed it meanwhile; pack again"


@pytest.mark.parametrize(
    ("number", "path", "kind", "what", "remedy"),
    [
        (
            errno.EACCES, b"/home/u/my env/share/a[b", BrokenEnvironmentError, "read",
            "Make it readable, or leave it out: envpack pack --prefix '/home/u/my env' --exclude 'share/a[[]b'",
        ),
        (errno.EIO, "/home/u/b/x.py", BrokenEnvironmentError, "read", "Make it readable: ls -ld /home/u/b/x.py"),
        (errno.ESTALE, "/home/u/my env/x", BrokenEnvironmentError, "read", AGAIN),
        (errno.ENOTDIR, "/home/u/my env/x", BrokenEnvironmentError, "read", AGAIN),
        (errno.EDQUOT, None, NoSpaceError, "write", ROOM),
        (errno.EACCES, "/home/u/packs", PackFailedError, "write", ELSEWHERE),
        (errno.EIO, None, PackFailedError, "write", ELSEWHERE),
        (errno.ENOENT, "/home/u/packs/x/.envpack-1.tmp", PackFailedError, "write", VANISHED),
        (
            errno.EMFILE, "/home/u/my env/x", PackFailedError, "open",
            "Allow more open files, or use fewer threads: ulimit -n 4096; envpack pack --jobs 1",
        ),
    ],
)  # fmt: skip
def test_errors(
    number: int, path: str | bytes | None, kind: type[EnvpackError], what: str, remedy: str
) -> None:
    with pytest.raises(EnvpackError) as raised, named_errors(PREFIX, FOLDER):
        raise OSError(number, os.strerror(number), path)
    assert type(raised.value) is kind
    shown = os.fsdecode(path) if path else FOLDER
    assert raised.value.problem == f"cannot {what} {shown} on {HOST}: {os.strerror(number)}"
    assert raised.value.remedy == remedy


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't start new thread"), OSError(errno.EAGAIN, "Resource temporarily unavailable")],
)
def test_a_limit_of_processes(error: Exception) -> None:
    with pytest.raises(PackFailedError) as raised, named_errors(PREFIX, FOLDER):
        raise error
    assert str(raised.value) == (
        f"cannot start another thread or process on {HOST}: {error}. "
        "Use fewer, or end some of your processes there: envpack pack --jobs 1"
    )
