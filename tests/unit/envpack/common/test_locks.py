from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envpack.common.locks import hold_folder, open_folder, open_lock_file, take_lock, try_lock, wait_for_lock
from envpack.common.trust import user_name
from envpack.errors import PackFailedError


def test_one_holds_it_alone_or_several_share_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second, third = (open_lock_file(path) for _ in range(3))
    assert try_lock(first, path) and not try_lock(second, path) and not try_lock(second, path, shared=True)
    os.close(first)
    assert try_lock(second, path, shared=True) and not try_lock(third, path)
    assert try_lock(third, path, shared=True)
    for fd in (second, third):
        os.close(fd)
    wait_for_lock(open_lock_file(path))
    assert not try_lock(open_lock_file(path), path)


def test_a_lock_on_what_was_replaced_excludes_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    fd = open_lock_file(path)
    path.unlink()
    assert not try_lock(fd, path)
    open_lock_file(path)
    assert not try_lock(fd, path)


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="link"):
        open_folder(tmp_path / "link")
    with pytest.raises(OSError, match="link"):
        open_lock_file(tmp_path / "link")
    os.close(open_folder(tmp_path))


def test_child_processes_go_on_holding_a_folder(tmp_path: Path) -> None:
    fd = hold_folder(tmp_path)
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    os.close(fd)

    def can_be_locked() -> bool:
        mine = open_folder(tmp_path)
        try:
            return try_lock(mine, tmp_path)
        finally:
            os.close(mine)

    assert not can_be_locked()
    os.close(hold_folder(tmp_path))
    child.kill()
    child.wait()
    assert can_be_locked()


def test_a_folder_that_is_gone_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hold_folder(tmp_path / "gone")


def test_a_folder_that_is_replaced_during_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def replace_first(fd: int, operation: int) -> None:
        monkeypatch.undo()
        folder.rename(tmp_path / "aside")
        folder.mkdir()
        fcntl.flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    fd = hold_folder(folder)
    assert os.path.samestat(os.fstat(fd), folder.stat())
    os.close(fd)


HOLD = """
import os, sys
from envpack.common.locks import take_lock
from envpack.errors import PackFailedError
take_lock(sys.argv[1], 5, error=PackFailedError)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that holds the lock file `lock`."""
    command = [sys.executable, "-c", HOLD, tmp_path / "lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.send_signal(signal.SIGCONT)
        process.kill()


def wait_for_state(pid: int, state: str) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != state:
        assert time.monotonic() < deadline


def test_a_lock_says_who_holds_it(
    holder: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envpack.common.locks.SAY_AFTER_S", 0.0)
    path, said = tmp_path / "lock", []
    host, pid, uid, since = path.read_text().split()
    assert (host, int(pid), int(uid)) == (os.uname().nodename, holder.pid, os.geteuid())
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(since)))
    who = f"process {pid} of {user_name(int(uid))} on {host}, since {at},"
    with pytest.raises(PackFailedError) as raised:
        take_lock(path, 0.1, error=PackFailedError, say=said.append)
    assert said == [f"waiting up to 0 s for the lock {path}: {who} holds it"]
    assert raised.value.problem == f"{who} holds the lock {path}; waited 0 s"
    assert raised.value.remedy == f"See what it does, and end it if it hangs: ps -fp {pid}"
    holder.send_signal(signal.SIGSTOP)
    wait_for_state(holder.pid, "T")
    with pytest.raises(PackFailedError) as raised:
        take_lock(path, 0, error=PackFailedError)
    assert raised.value.problem == f"{who} which is suspended, holds the lock {path}; waited 0 s"
    subprocess.run(raised.value.remedy.rpartition(": ")[2], shell=True, check=True)
    assert holder.stdin is not None
    holder.stdin.close()
    os.close(take_lock(path, 60, error=PackFailedError))


@pytest.mark.parametrize(
    ("content", "problem", "remedy"),
    [
        ("", "another process on {here}", "Find it: fuser -v '{path}'"),
        ("{here} 4194305 0 0\n", "another process on {here}", "Find it: fuser -v '{path}'"),
        (
            "login2 77 0 0\n",
            "process 77 of root (uid 0) on login2, since {epoch},",
            "On login2, see what it does, and end it if it hangs: ps -fp 77",
        ),
    ],
    ids=["taken otherwise", "its process is gone", "another host"],
)
def test_other_holders_of_a_lock(content: str, problem: str, remedy: str, tmp_path: Path) -> None:
    path = tmp_path / "a lock"
    words = {
        "here": os.uname().nodename,
        "path": path,
        "epoch": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(0)),
    }
    path.write_text(content.format(**words))
    assert try_lock(open_lock_file(path), path)
    with pytest.raises(PackFailedError) as raised:
        take_lock(path, 0, error=PackFailedError)
    assert raised.value.problem == f"{problem.format(**words)} holds the lock {path}; waited 0 s"
    assert raised.value.remedy == remedy.format(**words)
