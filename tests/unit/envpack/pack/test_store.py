"""Which archives are reused, which are kept, and who waits for whom."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from envpack_trees import make_venv

import envpack.pack.archive_writer
from envpack.archive.damage import is_damaged, mark, note_damage
from envpack.common.locks import take_lock
from envpack.common.trust import user_name
from envpack.errors import PackFailedError
from envpack.pack import store
from envpack.pack.packing import pack, unchanged_archive

pytestmark = pytest.mark.usefixtures("small_base")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MPIBOOT_HOME", os.fspath(tmp_path / "home"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path / "home"


@pytest.fixture
def prefix(tmp_path: Path, home: Path) -> Path:
    return make_venv(tmp_path / "env")


def archives(home: Path, name: str, count: int) -> list[Path]:
    """Make empty archives, the newest first."""
    folder = home / "packs" / f"{name}-0123456789ab"
    folder.mkdir(parents=True)
    paths = [folder / f"{name}-{n}.tar.zst" for n in range(count)]
    for n, path in enumerate(paths):
        path.touch()
        os.utime(path, (1000 - n, 1000 - n))
    return paths


def names(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "packs").glob("*/*"))


def test_gc_keeps_the_newest_and_those_with_leases(home: Path) -> None:
    a, b = archives(home, "a", 4), archives(home, "b", 1)
    store.lease(a[2], "slurm-c-12")
    store.lease(a[2], "slurm-c-13")
    store.lease(b[0], "slurm-c-12")
    note_damage(a[3])
    mark(a[0].with_name("gone.tar.zst")).touch()
    (a[0].parent / ".envpack-x.tmp").touch()
    assert list(store.gc(home)) == [
        a[1], a[3], a[0].parent / ".envpack-x.tmp", a[0].with_name("gone.tar.zst.damaged"),
    ]  # fmt: skip
    kept = ["a-0.tar.zst", "a-2.tar.zst", "b-0.tar.zst"]
    leases = [
        "a-2.tar.zst.lease-slurm-c-12", "a-2.tar.zst.lease-slurm-c-13", "b-0.tar.zst.lease-slurm-c-12",
    ]  # fmt: skip
    assert names(home) == sorted(kept + leases)
    assert {name: sorted(paths) for name, paths in store.leases(home).items()} == {
        "slurm-c-12": [a[2].parent / leases[0], b[0].parent / leases[2]],
        "slurm-c-13": [a[2].parent / leases[1]],
    }
    for path in store.leases(home)["slurm-c-12"]:
        path.unlink()
    assert list(store.gc(home)) == [] and names(home) == sorted([*kept, leases[1]])
    for path in store.leases(home)["slurm-c-13"]:
        path.unlink()
    assert list(store.gc(home)) == [a[2]] and names(home) == ["a-0.tar.zst", "b-0.tar.zst"]
    assert store.gc(home / "none") == {}


def test_gc_says_what_it_would_remove_and_how_large_it_is(home: Path) -> None:
    paths = archives(home, "a", 4)
    for n, path in enumerate(paths):
        path.write_bytes(b"x" * n)
        used_at = time.time() - 7200 * n
        os.utime(path, (used_at, used_at))
    store.lease(paths[3], "slurm-c-12")
    assert store.gc(home, dry_run=True) == {paths[1]: 1, paths[2]: 2}
    assert store.gc(home, older_than_s=10000, dry_run=True) == {paths[2]: 2}
    assert store.gc(home, older_than_s=10000) == {paths[2]: 2}
    assert store.gc(home) == {paths[1]: 1}


def test_gc_keeps_the_newest_that_is_not_damaged(home: Path) -> None:
    paths = archives(home, "a", 3)
    note_damage(paths[0])
    assert list(store.gc(home)) == [paths[0], paths[2]]
    assert names(home) == ["a-1.tar.zst"]


def test_gc_of_archives_of_removed_environments(prefix: Path, home: Path) -> None:
    path = pack(prefix, level=1).path
    parent = prefix.parent.rename(prefix.parent.with_name("unmounted"))
    assert store.gc(home) == {}
    parent.rename(prefix.parent)
    assert store.gc(home) == {}
    prefix.rename(prefix.with_name("renamed"))
    store.lease(path, "slurm-c-1")
    assert store.gc(home) == {}
    [lease] = store.leases(home)["slurm-c-1"]
    lease.unlink()
    assert list(store.gc(home)) == [path]


def test_an_old_archive_with_a_lease_stays(prefix: Path, home: Path) -> None:
    made = []
    for n in range(5):
        (prefix / "share" / "n").write_text("n" * n)
        made.append(pack(prefix, level=1).path)
        if n == 0:
            store.lease(made[0], "slurm-c-1")
        os.utime(made[-1], (n, n))
    assert [path.exists() for path in made] == [True, False, True, True, True]


def test_a_new_file_is_taken_for_an_unfinished_one(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pack into the same folder looks between a file's making and its lock."""
    removed: list[Path] = []
    mkstemp = tempfile.mkstemp

    def slow(*arguments: object, **options: Any) -> tuple[int, str]:
        made = mkstemp(*arguments, **options)
        if not removed:
            removed.extend(store.remove_unfinished(options["dir"]))
        return made

    monkeypatch.setattr(envpack.pack.archive_writer.tempfile, "mkstemp", slow)
    assert pack(prefix).path.exists() and len(removed) == 1


def test_gc_of_a_home_that_cannot_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_damage(archives(home, "a", 1)[0].with_name("gone.tar.zst"))

    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))

    monkeypatch.setattr(Path, "unlink", unlink)
    assert list(store.gc(home)) == []


def test_a_damaged_archive_is_replaced(prefix: Path) -> None:
    first = pack(prefix)
    note_damage(first.path)
    assert unchanged_archive(prefix) is None
    second = pack(prefix)
    assert (second.reused, second.frames_copied, second.path) == (False, 0, first.path)
    assert not is_damaged(first.path) and pack(prefix).reused


def test_excluded_files_are_another_environment(prefix: Path) -> None:
    first = pack(prefix, exclude=["share/*"])
    assert (first.excluded, first.excluded_bytes) == ((), 0)
    (prefix / "share" / "doc").mkdir()
    (prefix / "share" / "doc" / "page").write_text("a page")
    (prefix / "share" / "x").write_text("x")
    again = pack(prefix, exclude=["share/*"])
    assert (again.reused, again.excluded, again.excluded_bytes) == (True, ("share/doc", "share/x"), 7)
    assert unchanged_archive(prefix, exclude=["share/*"]) == first.path
    assert unchanged_archive(prefix) is None and not pack(prefix).reused


def test_another_pack_is_waited_for_with_a_deadline(prefix: Path) -> None:
    path = pack(prefix).path
    lock = path.parent / ".lock"
    fd = take_lock(lock, 0, error=PackFailedError)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(lock.read_text().split()[3])))
    # Who need not write need not wait.
    assert pack(prefix, lock_timeout_s=0).reused
    (prefix / "share" / "new").touch()
    said: list[str] = []
    with pytest.raises(PackFailedError) as raised:
        pack(prefix, lock_timeout_s=0, say=said.append)
    assert raised.value.problem == (
        f"process {os.getpid()} of {user_name(os.geteuid())} on {os.uname().nodename}, since {since}, "
        f"holds the lock {lock}; waited 0 s"
    )
    assert raised.value.remedy == f"See what it does, and end it if it hangs: ps -fp {os.getpid()}"
    os.close(fd)
    assert not pack(prefix, lock_timeout_s=0).reused


def test_a_file_system_without_locks(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert pack(prefix).path.exists()


def test_archives_that_vanish_meanwhile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = archives(home, "a", 2)
    glob = Path.glob

    def late(folder: Path, pattern: str) -> list[Path]:
        found = list(glob(folder, pattern))
        paths[0].unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "glob", late)
    assert store.newest_first(paths[0].parent) == {paths[1]: 999.0}
    assert store.newest_first(home / "none") == {}
