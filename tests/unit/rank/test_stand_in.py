"""What a stand-in refuses, and what it asks its agent for. The agent's own part is in tests/unit/agent/test_adopt.py."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import mpiboot.rank
from mpiboot.protocol.node import AGENT_SOCKET_NAME, RankPlan, RankRequest

STAND_IN = Path(mpiboot.rank.__file__).with_name("stand_in.py")


@pytest.fixture
def plan(tmp_path):
    return RankPlan(
        set={"A": "plan", "B": "plan"},
        unset=["PYTHONPATH", "A", "SSH_*"],
        nodes_own=["DEVICES", "MPS_*", "B"],
        required_files=[],
        agent_folder=str(tmp_path),
        command=["python", "dask-mpi"],
        node_arguments={"n1": ["--nthreads", "2"]},
        server="/e/fork_server.py",
        lock=None,
    )


def start(folder, plan, **variables):
    (folder / "rank-environment.json").write_text(json.dumps(plan))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(STAND_IN), str(folder)],
        env={"PATH": os.defpath, **variables},
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("answer", "status"), [(b"0", 0), (b"7", 7), (b"-9", 137), (b"", 1)])
def test_the_request_and_its_answer(tmp_path, plan, answer, status):
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / AGENT_SOCKET_NAME))
        agent.listen()
        agent.settimeout(20)
        launchers = {
            "A": "launcher",
            "DEVICES": "0",
            "MPS_PIPE": "/tmp",
            "MPS": "1",
            "B": "0",
            "SSH_TTY": "x",
        }
        process = start(tmp_path, plan, PYTHONPATH="/site", PMIX_RANK="3", **launchers)
        connection, _ = agent.accept()
        with connection, connection.makefile("rb") as file:
            assert file.read(1) == b"."
            request = json.load(file)
            connection.sendall(answer)
    assert process.wait(20) == status
    environment = request.pop("environment")
    assert {name: value for name, value in environment.items() if name not in ("PATH", "LC_CTYPE")} == {
        "A": "plan",
        "B": "plan",
        "MPS": "1",
        "PMIX_RANK": "3",
    }
    assert request == {
        "command": ["python", "dask-mpi"],
        "node_arguments": {"n1": ["--nthreads", "2"]},
        "server": "/e/fork_server.py",
        "nodes_own": ["DEVICES", "MPS_*", "B"],
        "folder": str(tmp_path),
        "lock": None,
        "descriptors": [],
    }
    assert {*request, "environment"} == RankRequest.__required_keys__
    process.stderr.close()


def test_a_rank_without_a_file_that_it_needs_refuses(tmp_path, plan):
    process = start(tmp_path, plan | {"required_files": [str(tmp_path / "tls/ca.pem")]})
    message = process.communicate(timeout=20)[1]
    assert process.returncode == 1
    assert f"cannot read {tmp_path}/tls/ca.pem" in message


def test_a_rank_without_an_agent_refuses(tmp_path, plan):
    process = start(tmp_path, plan)
    message = process.communicate(timeout=20)[1]
    assert (process.returncode, "could not reach its agent in" in message) == (1, True)
