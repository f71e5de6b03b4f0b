"""The agent of a node: it answers, lives until boot is gone or a signal comes, and leaves nothing of the job."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from mpiboot.protocol.job_directory import JobDirectory
from mpiboot.protocol.node import job_folder

PROGRAM = """
import sys
from mpiboot.agent import agent
agent.HEARTBEAT_S, agent.SILENCE_S = 0.05, float(sys.argv.pop())
sys.exit(agent.main())
"""


class Node:
    """A node with an agent on it, and boot's end of the agent's pipes."""

    def __init__(self, folder, silence_s=60.0, program=PROGRAM, **orders):
        self.root = folder / "root"
        self.root.mkdir()
        self.directory = JobDirectory.create(folder / "home", "slurm-c-7")
        self.directory.endpoint.touch()
        self.folder = job_folder(self.root, "slurm-c-7")
        self.orders = {
            "node_variable": "NAME_OF_NODE",
            "first_node": "n1",
            "job_directory": str(self.directory.path),
            "root": str(self.root),
            "job_key": "slurm-c-7",
            "threads": 1,
            "prefix": None,
            "pack_id": None,
            "cancel_command": None,
            **orders,
        }
        self.agent = subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(self.orders), str(silence_s)],
            env={**os.environ, "NAME_OF_NODE": "n2"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def answer(self):
        return json.loads(self.agent.stdout.readline())

    def order(self, order):
        self.agent.stdin.write(json.dumps(order).encode() + b"\n")
        self.agent.stdin.flush()


@pytest.fixture
def node(tmp_path):
    nodes = []

    def start(**settings):
        nodes.append(Node(tmp_path, **settings))
        return nodes[-1]

    yield start
    for each in nodes:
        each.agent.kill()
        each.agent.wait()
        each.agent.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            each.agent.stdin.close()


def test_it_reports_and_cleans_its_node_when_boot_is_gone(node):
    n2 = node()
    report = n2.answer()
    assert report.pop("interfaces")["lo"]["address"] == "127.0.0.1"
    assert set(report) == {"node", "memory_bytes", "cpus", "root_is_memory", "has_stage"}
    assert (report["node"], report["has_stage"]) == ("n2", False)
    assert n2.folder.is_dir()
    n2.agent.stdin.close()
    assert n2.answer() == {"node": "n2", "clean": True}
    assert n2.agent.wait(20) == 0
    assert not n2.folder.exists()
    assert n2.directory.endpoint.exists()  # it may only have lost its connection: boot clears that


@pytest.mark.parametrize("first_node", ["n1", "n2"])
def test_secrets_go_with_a_cancelled_job(node, first_node):
    n2 = node(first_node=first_node)
    n2.answer()
    n2.agent.send_signal(signal.SIGTERM)
    assert n2.answer() == {"node": "n2", "clean": True}
    assert not n2.directory.endpoint.exists()


def test_the_agent_beside_boot_clears_the_secrets(node):
    n2 = node(first_node="n2")
    n2.answer()
    n2.agent.stdin.close()
    assert n2.answer()["clean"]
    assert not n2.directory.endpoint.exists()


def test_an_error_is_an_answer_and_the_agent_lives_on(node):
    n2 = node()
    n2.answer()
    n2.order({"archive": "/no/such/archive", "transport": "direct", "remove_archive": False})
    error = n2.answer()
    assert error["node"] == "n2"
    assert "/no/such/archive" in error["error"]
    n2.agent.stdin.close()
    assert n2.answer()["clean"]


def test_a_long_error_keeps_its_beginning_and_its_remedy(node):
    n2 = node()
    n2.answer()
    n2.order({"archive": f"/{'x' * 200}" * 5, "transport": "direct", "remove_archive": False})
    error = n2.answer()["error"]
    assert error.startswith("cannot open the archive /xxx")
    assert error.endswith(". Check the path")
    assert len(error) < 610


def test_the_second_agent_on_a_shared_staging_root_refuses(node, tmp_path):
    first = node()
    first.answer()
    second = subprocess.run(
        first.agent.args, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
    )
    answer = json.loads(second.stdout.splitlines()[0])
    assert "is on a shared file system. Set MPIBOOT_STAGE_ROOT" in answer["error"]
    assert second.returncode == 1


def test_a_silent_boot_is_lost_and_its_job_is_cancelled(node, tmp_path):
    n2 = node(silence_s=0.5, cancel_command=["touch", str(tmp_path / "cancelled")])
    n2.answer()
    assert n2.answer()["clean"]
    assert (tmp_path / "cancelled").exists()
    assert not n2.directory.endpoint.exists()
    (closed,) = n2.directory.read_events()
    assert closed["reason"].startswith("the first node, n1, is lost")
    assert (closed["event"], closed["host"]) == ("closed", "n2")


def test_a_node_is_cleaned_even_if_its_file_system_went_with_the_first_node(node):
    no_module_can_be_read = "import sys; sys.modules['mpiboot.protocol.events'] = None\n"
    n2 = node(silence_s=0.5, program=no_module_can_be_read + PROGRAM, cancel_command=["true"])
    n2.answer()
    assert n2.answer() == {"node": "n2", "clean": True}
    assert not n2.folder.exists()


def test_heartbeats_keep_the_agent(node):
    n2 = node(silence_s=0.5)
    n2.answer()
    for _ in range(20):
        n2.agent.stdin.write(b"\n")
        n2.agent.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            n2.agent.wait(0.1)
