"""The agent has ranks started for their stand-ins, by one fork server: environment, folder, MPI's connection, status."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mpiboot.rank.stand_in
from mpiboot.agent.adopt import Ranks

FORKSERVER = Path(mpiboot.rank.stand_in.__file__).with_name("fork_server.py")
# A rank tells where it is, and waits for its end.
TELL = """
import json, os, sys
from pathlib import Path
told = {"pid": os.getpid(), "server": os.getppid(), "folder": os.getcwd(), "argv": sys.argv, "path": sys.path,
        "group": os.getpgrp(), "environment": dict(os.environ), "shared": "dask_mpi.cli" in sys.modules}
Path("partial" + os.environ["RANK"]).write_text(json.dumps(told))
Path("partial" + os.environ["RANK"]).rename("told" + os.environ["RANK"])
open("end").read()
"""


class Node:
    """The agent's part, and what the launcher starts."""

    def __init__(self, folder):
        self.folder = folder
        os.mkfifo(folder / "end")
        # As in an agent, what the ranks print goes elsewhere than what the agent prints.
        self.reader, self.output = os.pipe()
        self.ranks = Ranks(folder, "n1", self.output, self.reader)
        self.ranks.listener.settimeout(10)
        self.closed = False

    def stand_in(self, script, *arguments, plan=None, python=sys.executable, **variables):
        (self.folder / "script").write_text(script)
        orders = {
            "set": plan or {},
            "unset": [],
            "nodes_own": ["DEVICES", "MPS_*"],
            "required_files": [],
            "lock": None,
            "agent_folder": str(self.folder),
            "command": [python, str(self.folder / "script")],
            "node_arguments": {"n1": arguments, "n2": ["of another node"]},
            "server": str(FORKSERVER),
        }
        (self.folder / "rank-environment.json").write_text(json.dumps(orders))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", mpiboot.rank.stand_in.__file__, str(self.folder)],
            env={**os.environ, **variables},
            cwd=self.folder,
            close_fds=False,
        )
        self.adopt()
        return process

    def adopt(self):
        connection, _ = self.ranks.listener.accept()
        self.ranks.adopt(connection)

    def printed(self):
        return os.read(self.reader, 1 << 16).decode()

    def close(self):
        """No more ranks are started; the server ends with those that there are."""
        if not self.closed:
            self.ranks.close()
            os.close(self.output)
            os.close(self.reader)
        self.closed = True

    def told(self, rank):
        return json.loads(wait_for(self.folder / f"told{rank}").read_text())


def wait_for(path):
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)
    return path


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    yield node
    node.close()
    # Ranks that a failed test has left read on, and those that are still to come too.
    writer = os.open(tmp_path / "end", os.O_RDWR | os.O_NONBLOCK)
    (tmp_path / "end").unlink(missing_ok=True)
    (tmp_path / "end").touch()
    os.close(writer)
    if node.ranks.server:
        node.ranks.server.wait(20)


def test_a_rank_has_its_stand_ins_environment_folder_and_connection(node):
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    script = "import os; os.write(int(os.environ['PMI_FD']), (os.getcwd() + os.environ['RANK']).encode())"
    process = node.stand_in(script, PMI_FD=str(theirs.fileno()), RANK=" 3")
    assert process.wait(20) == 0
    ours.settimeout(5)
    assert ours.recv(4096).decode() == f"{node.folder} 3"
    theirs.close()
    assert ours.recv(1) == b""  # nobody else holds it: MPI's process manager sees the rank's end
    ours.close()


def test_a_rank_has_its_own_nodes_devices(node, monkeypatch):
    """The launcher's are those of another node; what the user has asked for has precedence."""
    for name, value in {"DEVICES": "0,1", "MPS_PIPE": "/tmp/mps", "MPS_LOG": "/tmp/log"}.items():
        monkeypatch.setenv(name, value)
    stand_in = node.stand_in(TELL, RANK="0", DEVICES="7", MPS_OTHER="x", plan={"MPS_LOG": "/users"})
    environment = node.told(0)["environment"]
    assert {name: value for name, value in environment.items() if name.startswith(("DEVICES", "MPS"))} == {
        "DEVICES": "0,1",
        "MPS_PIPE": "/tmp/mps",
        "MPS_LOG": "/users",
    }
    (node.folder / "end").write_text("")
    assert stand_in.wait(20) == 0


@pytest.mark.parametrize(
    ("script", "status"),
    [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 128 + signal.SIGKILL)],
)
def test_a_stand_in_ends_as_its_rank(node, script, status):
    assert node.stand_in(script).wait(20) == status


def test_ranks_share_what_they_import_and_nothing_else(node):
    stand_ins = [node.stand_in(TELL, "a", RANK="0", FIRST="yes"), node.stand_in(TELL, "b", RANK="1")]
    first, second = node.told(0), node.told(1)
    assert first["server"] == second["server"] != os.getpid()
    assert first["shared"] and second["shared"]
    assert (first["group"], second["group"]) == (first["pid"], second["pid"])
    assert (first["environment"]["RANK"], first["environment"]["FIRST"]) == ("0", "yes")
    assert second["environment"]["RANK"] == "1" and "FIRST" not in second["environment"]
    script = str(node.folder / "script")
    assert (first["argv"], second["argv"]) == ([script, "a"], [script, "b"])
    assert first["folder"] == str(node.folder)
    assert str(FORKSERVER.parent) not in first["path"]

    node.close()
    os.kill(second["pid"], signal.SIGKILL)
    assert stand_ins[1].wait(20) == 128 + signal.SIGKILL
    assert stand_ins[0].poll() is None
    (node.folder / "end").write_text("")
    assert stand_ins[0].wait(20) == 0
    assert node.ranks.server.wait(20) == 0


@pytest.mark.parametrize("safe_path", ["", "1"])
def test_a_rank_has_all_folders_of_pythonpath(node, safe_path):
    folders = os.pathsep.join(["/first", *filter(None, [os.environ.get("PYTHONPATH")])])
    stand_in = node.stand_in(TELL, RANK="0", PYTHONPATH=folders, PYTHONSAFEPATH=safe_path)
    assert node.told(0)["path"][0] == "/first"
    (node.folder / "end").write_text("")
    assert stand_in.wait(20) == 0


def test_a_rank_outlives_its_stand_in_and_its_server(node):
    stand_ins = [node.stand_in(TELL, RANK="0"), node.stand_in(TELL, RANK="1")]
    rank = node.told(0)
    node.told(1)
    stand_ins[0].kill()
    stand_ins[0].wait()
    os.kill(rank["server"], signal.SIGKILL)
    assert node.stand_in("raise SystemExit(7)").wait(20) == 7  # of a new server
    assert stand_ins[1].poll() is None
    assert Path(f"/proc/{rank['pid']}/cmdline").read_bytes()
    (node.folder / "end").write_text("")
    assert stand_ins[1].wait(20) == 1  # nobody can tell how its rank ended


def test_a_stand_in_that_dies_while_it_asks_costs_itself(node):
    process = node.stand_in(TELL, RANK="0")
    node.told(0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as broken:
        broken.connect(str(node.folder / "agent.sock"))
        broken.sendall(b'.{"command": ')
    node.adopt()
    assert "a rank on" in node.printed()
    assert node.stand_in("raise SystemExit(7)").wait(20) == 7
    (node.folder / "end").write_text("")
    assert process.wait(20) == 0


def test_rank_0_is_told_to_boot(node):
    """First the server that it is forked from, for that may not start; then itself."""
    process = node.stand_in(TELL, RANK="0", PMIX_RANK="0", MPIBOOT_CONTROL_FOLDER=str(node.folder))
    assert (node.folder / "scheduler.pid").read_text()
    pid = node.told(0)["pid"]
    assert (node.folder / "scheduler.pid").read_text() == str(pid)
    (node.folder / "end").write_text("")
    assert process.wait(20) == 0


def test_a_rank_needs_no_high_descriptors(node):
    """The site allows few open files: `ulimit -n 100`, hard and soft."""
    limited = node.folder / "limited"
    limited.write_text(f'#!/bin/bash\nulimit -n 100\nexec {sys.executable} "$@"\n')
    limited.chmod(0o755)
    assert node.stand_in("print('started')", python=str(limited)).wait(20) == 0
    assert node.printed() == "started\n"


def test_a_server_leaves_nothing_open(node):
    """With `PYTHONWARNINGS=error`, as with `-X dev`, Python would print a traceback about it."""
    assert node.stand_in("print('started')", PYTHONWARNINGS="error::ResourceWarning").wait(20) == 0
    with os.fdopen(os.dup(node.reader)) as printed:
        node.close()
        assert node.ranks.server.wait(20) == 0
        assert printed.read() == "started\n"


def test_a_server_that_cannot_start_is_told(node):
    """The environment lacks dask-mpi, say."""
    (node.folder / "dask_mpi").mkdir()
    (node.folder / "dask_mpi/__init__.py").write_text("raise ImportError('broken')")
    assert node.stand_in("", PYTHONPATH=str(node.folder)).wait(20) == 1
    assert "ImportError: broken" in node.printed()


def test_a_rank_prints_on_when_its_agent_is_gone(node):
    """Printing neither fails nor blocks, though it is more than the pipe holds."""
    process = node.stand_in("open('end').read()\nfor _ in range(3000): print('x' * 99, flush=True)")
    node.close()  # nobody but the server has the pipe's reading end
    (node.folder / "end").write_text("")
    assert process.wait(30) == 0
    assert node.ranks.server.wait(20) == 0
