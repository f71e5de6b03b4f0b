"""The agent starts ranks for their stand-ins: environment, folder, MPI's open connection, exit status."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mpiboot.rank
from mpiboot.adopt import Ranks


def stand_in(folder, command, **variables):
    orders = {"set": {}, "unset": [], "required_files": [], "lock": None, "agent_folder": str(folder)}
    (folder / "rank-environment.json").write_text(json.dumps({**orders, "command": command}))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", mpiboot.rank.__file__, str(folder)],
        env={**os.environ, **variables},
        cwd=folder,
        close_fds=False,
    )


def served(ranks, process):
    """The stand-in's exit status, with the agent's part played."""
    ranks.listener.settimeout(10)
    ranks.adopt()
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        ranks.reap()
        time.sleep(0.01)
    return process.wait(0)


@pytest.fixture
def ranks(tmp_path):
    ranks = Ranks(tmp_path)
    yield ranks
    ranks.listener.close()
    os.close(ranks._folder)


def test_a_rank_has_its_stand_ins_environment_folder_and_connection(tmp_path, ranks):
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    script = "import os; os.write(int(os.environ['PMI_FD']), (os.getcwd() + os.environ['RANK']).encode())"
    number = str(theirs.fileno())
    process = stand_in(tmp_path, [sys.executable, "-c", script], PMI_FD=number, RANK=" 3")
    assert served(ranks, process) == 0
    ours.settimeout(5)
    assert ours.recv(4096).decode() == f"{tmp_path} 3"
    ours.close()
    theirs.close()


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 128 + signal.SIGKILL)])
def test_a_stand_in_ends_as_its_rank(tmp_path, ranks, script, status):
    assert served(ranks, stand_in(tmp_path, ["/bin/sh", "-c", script])) == status


def test_a_rank_outlives_its_stand_in(tmp_path, ranks):
    process = stand_in(tmp_path, ["/bin/sleep", "60"])
    ranks.listener.settimeout(10)
    ranks.adopt()
    process.kill()
    process.wait()
    ranks.reap()
    (pid,) = ranks.stand_ins
    assert Path(f"/proc/{pid}").exists()
    os.kill(pid, signal.SIGKILL)
    while ranks.stand_ins:
        ranks.reap()


def test_without_an_agent_a_rank_refuses(tmp_path):
    assert stand_in(tmp_path, ["/bin/true"]).wait(10) == 1
