"""The agent of a node: it dials boot, follows its orders, and leaves nothing of the job, however it ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from envpack.pack.packing import pack
from envpack.stage import gc, marker
from mpiboot.agent.folders import LOCK_NAME
from mpiboot.boot.certificates import make_job_secrets
from mpiboot.boot.channel import Channel
from mpiboot.common.processes import host_identity, process_start
from mpiboot.common.version import VERSION
from mpiboot.protocol.channel_messages import ChannelAddress, Close, Failure, Orders, StageOrder
from mpiboot.protocol.job_directory import JobDirectory, write_atomic
from mpiboot.protocol.messages import to_dict
from mpiboot.protocol.node import AGENT_SOCKET_NAME, job_folder, socket_address

PROGRAM = """
import sys
from mpiboot.agent import agent
from mpiboot.protocol import channel
channel.HEARTBEAT_S, channel.CONNECTION_SILENCE_S, channel.SILENCE_S = 0.1, {0} / 3, {0}
sys.exit(agent.main())
"""
LONG_S = 60.0


class Node:
    """A node with an agent on it, and boot's channel."""

    def __init__(self, folder, silence_s=LONG_S, program=PROGRAM, name="n2", **orders):
        self.root = folder / "root"
        self.root.mkdir(parents=True)
        self.directory = JobDirectory.create(folder / "home", "slurm-c-7")
        self.directory.endpoint.touch()
        make_job_secrets(self.directory.path, valid_for_s=600)
        self.folder = job_folder(self.root, "slurm-c-7")
        self.orders = Orders(
            **{
                "number": 0,
                "first_node": "n1",
                "n_nodes": 2,
                "root": str(self.root),
                "job_key": "slurm-c-7",
                "threads": 1,
                "prefix": None,
                "pack_id": None,
                "cancel_command": None,
                **orders,
            }
        )
        self.channel = Channel([name], "127.0.0.1", self.directory, self.orders)
        self.state = self.channel.nodes[name]
        self.name = name
        self.program = program.format(silence_s)
        self.publish(os.getpid())
        self.agent = self.start()

    def publish(self, pid):
        address = ChannelAddress(
            version=VERSION,
            addresses=["127.0.0.1"],
            port=self.channel.port,
            node_variable="NAME_OF_NODE",
            host_identity=host_identity(),
            pid=pid,
            start=process_start(pid) or "",
        )
        write_atomic(self.directory.channel, to_dict(address))

    def start(self):
        return subprocess.Popen(
            [sys.executable, "-c", self.program, str(self.directory.path)],
            env={**os.environ, "NAME_OF_NODE": self.name},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def answer(self, number=0):
        assert self.channel.wait(lambda: number in self.state.answers, 20), self.agent.poll()
        return self.state.answers[number]

    def ends(self):
        """Return the agent's exit status, and its last words to boot."""
        assert self.channel.wait(lambda: self.state.ended is not None, 20)
        return self.agent.wait(20), self.state.ended

    def log(self):
        return self.directory.ranks_log.read_text()

    def sockets(self):
        """Return how many sockets the agent has."""
        count = 0
        for path in Path(f"/proc/{self.agent.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since
                count += str(path.readlink()).startswith("socket:")
        return count

    def is_connected_by(self, stand_in):
        folder = os.open(self.folder, os.O_RDONLY)
        stand_in.connect(socket_address(folder, AGENT_SOCKET_NAME))
        os.close(folder)

    def close(self):
        self.channel.close()
        self.agent.kill()
        self.agent.wait()
        self.agent.stdout.close()


@pytest.fixture
def node(tmp_path):
    nodes = []

    def start(**settings):
        nodes.append(Node(tmp_path, **settings))
        return nodes[-1]

    yield start
    for each in nodes:
        each.close()


def test_it_reports_and_cleans_its_node_when_boot_closes(node):
    n2 = node()
    report = n2.answer()
    assert report.interfaces["lo"]["address"] == "127.0.0.1"
    assert report.has_stage is False and report.port > 0
    assert n2.folder.is_dir()
    n2.channel.close_agents("stopped")
    assert n2.ends() == (0, "stopped")
    assert not n2.folder.exists()
    assert n2.directory.endpoint.exists()  # boot clears the job directory


CANCELLED = "SIGTERM came: the job was cancelled, or somebody ended the agent"


def test_sigterm_cleans_the_node_and_leaves_the_secrets_to_boot(node):
    n2 = node()
    n2.answer()
    n2.agent.send_signal(signal.SIGTERM)
    assert n2.ends() == (0, CANCELLED)
    assert n2.directory.endpoint.exists() and n2.directory.tls.exists()
    assert not n2.folder.exists()


def test_secrets_go_with_a_cancelled_job_whose_first_node_is_gone(node):
    n2 = node()
    n2.answer()
    connected = n2.sockets()
    n2.channel.close()
    wait_until(lambda: n2.sockets() < connected, "loss of the connection", 20)
    n2.agent.send_signal(signal.SIGTERM)
    assert n2.agent.wait(20) == 0
    assert not n2.directory.endpoint.exists() and not n2.directory.tls.exists()
    assert CANCELLED in n2.log()


def test_secrets_go_with_the_first_nodes_agent(node):
    n2 = node(first_node="n2")
    n2.answer()
    n2.agent.send_signal(signal.SIGTERM)
    assert n2.ends() == (0, CANCELLED)
    assert not n2.directory.endpoint.exists() and not n2.directory.tls.exists()


def test_the_agent_beside_boot_clears_the_secrets(node):
    n2 = node(first_node="n2")
    n2.answer()
    n2.channel.close_agents("stopped")
    assert n2.ends() == (0, "stopped")
    assert not n2.directory.endpoint.exists()


def test_an_error_is_an_answer_and_the_agent_lives_on(node):
    n2 = node(pack_id="0" * 64)
    n2.answer()
    order = StageOrder(number=1, archive="/no/such/archive", transport="direct")
    n2.channel.post(order)
    failure = n2.answer(1)
    assert isinstance(failure, Failure) and "/no/such/archive" in failure.error
    n2.channel.close_agents("stopped")
    assert n2.ends() == (0, "stopped")


def test_another_job_keeps_a_stage_whose_ranks_have_not_started(node, tmp_path, monkeypatch):
    monkeypatch.setattr(gc, "FRESH_S", 0.0)
    (tmp_path / "env" / "conda-meta").mkdir(parents=True)
    packed = pack(tmp_path / "env", tmp_path / "env.tar.zst")
    n2 = node(pack_id=packed.pack_id)
    n2.answer()
    n2.channel.post(StageOrder(number=1, archive=str(packed.path), transport="direct"))
    prefix = Path(n2.answer(1).stage["prefix"])
    assert gc.gc(n2.root) == [] and prefix.is_dir()
    n2.channel.close_agents("stopped")
    assert n2.ends() == (0, "stopped")
    assert gc.gc(n2.root) == [prefix]


def test_a_long_error_keeps_its_beginning_and_its_remedy(node):
    n2 = node(pack_id="0" * 64)
    n2.answer()
    order = StageOrder(number=1, archive=f"/{'x' * 200}" * 50, transport="direct")
    n2.channel.post(order)
    error = n2.answer(1).error
    assert error.startswith("cannot open the archive /xxx")
    assert error.endswith(". Check the path")
    assert len(error) < 4010


def test_the_second_agent_on_a_shared_staging_root_refuses_and_leaves_it_to_the_first(node, tmp_path):
    first = node()
    first.answer()
    # Both run on this host: the lock names another, as that of another node's agent does.
    [lock] = (first.root / f"mpiboot-{os.getuid()}").rglob(LOCK_NAME)
    lock.write_text("another-host 1")
    second = Node(tmp_path / "second", name="n3", root=str(first.root))
    try:
        assert "is on a shared file system. Set MPIBOOT_STAGE_ROOT" in second.answer().error.replace(
            "\n", ". "
        )
        second.channel.close_agents("failed")
        assert second.ends() == (0, "failed")
        assert first.folder.is_dir()
    finally:
        second.close()


def test_it_dials_again_and_what_happened_meanwhile_is_not_lost(node):
    n2 = node()
    n2.answer()
    connection = n2.state.connection
    n2.channel._loop.call_soon_threadsafe(connection.close)
    wait_until(lambda: n2.state.connection not in (None, connection), "another connection", 20)
    wait_until(lambda: len(n2.channel.changes) >= 2, "what has changed", 20)
    assert [change.event for change in n2.channel.changes] == ["agent-silent", "agent-back"]
    n2.channel.close_agents("stopped")
    assert n2.ends() == (0, "stopped")


def test_a_node_that_is_cut_off_gives_up_itself_alone(node, tmp_path):
    n2 = node(silence_s=1.5, cancel_command=["touch", str(tmp_path / "cancelled")])
    n2.answer()
    sign = 0

    def boot_lives_elsewhere():
        nonlocal sign
        sign += 1
        n2.directory.heartbeat.write_text(str(sign))
        return n2.agent.poll() is not None

    n2.channel.close()
    wait_until(boot_lives_elsewhere, "the agent's end", 30)
    assert n2.agent.wait() == 0
    assert not n2.folder.exists()
    assert n2.directory.endpoint.exists() and n2.directory.tls.exists()
    assert not (tmp_path / "cancelled").exists()
    assert "mpiboot: the agent on n2 ends: this node is cut off: nothing was heard of boot, on n1" in n2.log()


def test_a_lost_first_node_ends_the_job(node, tmp_path):
    n2 = node(silence_s=1.5, cancel_command=["touch", str(tmp_path / "cancelled")])
    n2.answer()
    n2.channel.close()
    assert n2.agent.wait(30) == 0
    assert (tmp_path / "cancelled").exists()
    assert not n2.directory.endpoint.exists() and not n2.folder.exists()
    (closed,) = n2.directory.read_events()
    assert closed["reason"].startswith("the first node, n1, is lost")
    assert (closed["event"], closed["host"]) == ("closed", "n2")


@pytest.mark.parametrize("first_node", ["n1", "n2"])
def test_the_agent_of_a_job_that_was_started_again_leaves_the_new_one_alone(node, tmp_path, first_node):
    n2 = node(silence_s=1.5, first_node=first_node, cancel_command=["touch", str(tmp_path / "cancelled")])
    n2.answer()
    n2.publish(1)  # the new boot
    n2.channel.close()
    assert n2.agent.wait(30) == 1
    assert not (tmp_path / "cancelled").exists()
    assert n2.directory.endpoint.exists() and n2.directory.tls.exists()
    assert not n2.folder.exists()
    assert "mpiboot: the agent on n2 ends: the job was started again: another boot runs it" in n2.log()


def test_without_boot_on_its_own_host_it_ends_at_once(node):
    with subprocess.Popen(["sleep", "0"]) as boot:
        boot.wait()
    n2 = node()
    n2.answer()
    n2.channel.close_agents("stopped")
    n2.ends()
    n2.publish(boot.pid)
    agent = n2.start()
    n2.channel.close()
    output, _ = agent.communicate(timeout=20)
    assert (agent.returncode, output) == (0, "")
    assert "boot has ended without closing the job" in n2.log()


def test_without_an_answer_of_boot_it_says_where_and_why(node):
    n2 = node(silence_s=1.5)
    n2.answer()
    n2.channel.close_agents("stopped")
    n2.ends()
    n2.channel.close()
    agent = n2.start()
    agent.communicate(timeout=20)
    assert agent.returncode == 1
    where = f"boot does not answer at 127.0.0.1, port {n2.channel.port}: "
    assert f"boot could not be reached for 1.5 s: {where}" in n2.log()
    name, reason = json.loads(n2.directory.unreached.read_text())
    assert name == "n2" and reason.endswith("name ports that it leaves open: --worker-port LOW:HIGH")
    assert "Connect call failed" in n2.log()


def test_an_error_that_should_not_happen_is_told_and_leaves_nothing(node):
    broken = "from mpiboot.agent import agent\nagent.interfaces = None\n"
    n2 = node(program=broken + PROGRAM)
    assert "not callable" in n2.answer().error
    n2.channel.close_agents("failed")
    assert n2.ends() == (0, "failed")
    assert not n2.folder.exists()


def test_a_task_that_fails_ends_the_agent_with_its_clean_up(node):
    broken = """
from mpiboot.agent import agent
def adopt(self):
    raise RuntimeError("out of luck")
agent.Agent.accept_rank = lambda self: self.start(self.adopt_none())
async def adopt_none(self):
    raise RuntimeError("out of luck")
agent.Agent.adopt_none = adopt_none
"""
    n2 = node(program=broken + PROGRAM)
    n2.answer()
    with socket.socket(socket.AF_UNIX) as stand_in:
        n2.is_connected_by(stand_in)
        status, why = n2.ends()
    assert status == 1
    assert why.startswith("an error that should not happen") and "RuntimeError: out of luck" in why
    assert not n2.folder.exists()


WHAT = "AttributeError: module 'os' has no attribute 'memfd_create'"
BREAK = """
from mpiboot.agent import agent
async def broken(*_, **__):
    raise AttributeError("module 'os' has no attribute 'memfd_create'")
{} = broken
"""


def broken_at(function, kind="async def"):
    return BREAK.format(function).replace("async def", kind)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        ("agent.Agent.__init__", "def"),
        ("agent.channel.dial_first", "async def"),
        ("agent.Agent.greet", "async def"),
    ],
)
def test_an_agent_that_fails_before_its_orders_says_why_and_where(node, function, kind):
    n2 = node(program=broken_at(function, kind) + PROGRAM)
    output, _ = n2.agent.communicate(timeout=20)
    said = output + n2.log()
    assert n2.agent.returncode == 1
    assert said.startswith("mpiboot: the agent on ") and WHAT in said and "Traceback" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        ("agent.Agent.send_heartbeats", "async def"),
        ("agent.Agent.watch_silence", "async def"),
        ("agent.Agent.execute", "def"),
    ],
)
def test_an_agent_that_fails_with_its_orders_cleans_its_node_and_says_why(node, function, kind):
    n2 = node(program=broken_at(function, kind) + PROGRAM)
    status = n2.agent.wait(20)
    n2.channel.wait(lambda: n2.state.ended is not None, 2)
    said = (n2.state.ended or "") + n2.agent.stdout.read() + n2.log()
    assert status == 1
    assert WHAT in said and "Traceback" not in said
    assert not n2.folder.exists()


@pytest.mark.parametrize("function", ["make_job_folder", "Ranks", "interfaces", "Listener"])
def test_a_step_that_fails_is_the_answer_with_the_reason(node, function):
    n2 = node(program=broken_at(f"agent.{function}", "def") + PROGRAM)
    assert n2.answer().error == "module 'os' has no attribute 'memfd_create'"
    n2.channel.close_agents("failed")
    assert n2.ends() == (0, "failed")
    assert not n2.folder.exists()
    assert "Traceback" not in n2.agent.stdout.read() + n2.log()


@pytest.mark.parametrize("function", ["_end_stager", "_end_ranks", "_clear", "_free_descriptors"])
def test_a_clean_up_that_fails_stops_no_other_and_is_told(node, function):
    n2 = node(program=broken_at(f"agent.Agent.{function}") + PROGRAM)
    n2.answer()
    n2.channel.close_agents("stopped")
    status, why = n2.ends()
    assert (status, why) == (
        1,
        "stopped; something of the job may be left on this node: module 'os' has no attribute 'memfd_create'",
    )
    assert not n2.folder.exists()


def test_a_node_without_room_for_a_thread_is_cleaned_all_the_same(node):
    no_thread = """
from mpiboot.agent import agent
real = agent.in_thread
async def in_thread(timeout_s, act, *arguments):
    if act is agent.clean:
        raise RuntimeError("can't start new thread")
    return await real(timeout_s, act, *arguments)
agent.in_thread = in_thread
"""
    n2 = node(program=no_thread + PROGRAM)
    n2.answer()
    n2.channel.close_agents("stopped")
    assert n2.ends() == (0, "stopped")
    assert not n2.folder.exists()


def test_a_rank_that_a_fault_keeps_from_starting_is_told_and_costs_no_other(node):
    n2 = node(program=broken_at("agent.Ranks.adopt", "def") + PROGRAM)
    n2.answer()
    with socket.socket(socket.AF_UNIX) as stand_in:
        n2.is_connected_by(stand_in)
        wait_until(lambda: "has no attribute 'memfd_create'" in n2.log(), "the rank's words", 20)
    n2.channel.close_agents("stopped")
    assert n2.ends() == (0, "stopped")
    assert "a rank on" in n2.log() and "Traceback" not in n2.log()


def test_an_agent_without_an_address_says_why(tmp_path):
    directory = JobDirectory.create(tmp_path / "home", "slurm-c-7")
    done = subprocess.run(
        [sys.executable, "-m", "mpiboot.agent.agent", str(directory.path)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"cannot start: [Errno 2] No such file or directory: '{directory.channel}'" in done.stderr


def test_secrets_go_with_a_boot_that_was_killed_before_the_first_contact(node):
    with subprocess.Popen(["sleep", "0"]) as boot:
        boot.wait()
    n2 = node()
    n2.answer()
    n2.channel.close_agents("stopped")
    n2.ends()
    assert n2.directory.tls.exists()
    n2.publish(boot.pid)
    n2.channel.close()
    agent = n2.start()
    agent.communicate(timeout=20)
    assert not n2.directory.endpoint.exists() and not n2.directory.tls.exists()


@pytest.mark.parametrize("request_json", ["[]", '"words"'])
def test_a_rank_that_cannot_be_started_costs_no_other(node, request_json):
    n2 = node()
    n2.answer()
    with socket.socket(socket.AF_UNIX) as stand_in:
        n2.is_connected_by(stand_in)
        socket.send_fds(stand_in, [b"."], [0])
        stand_in.sendall(request_json.encode())
        stand_in.shutdown(socket.SHUT_WR)
        wait_until(lambda: "could not be started" in n2.log(), "the rank's words", 20)
    n2.channel.close_agents("stopped")
    assert n2.ends() == (0, "stopped")


def test_no_order_is_begun_once_the_agent_ends(node):
    tells = """
from mpiboot.agent import agent
async def stage(self, order):
    print("staging", flush=True)
agent.Agent.stage = stage
"""
    n2 = node(program=tells + PROGRAM)
    n2.answer()
    order = StageOrder(number=1, archive="/no/such/archive", transport="direct")

    def post_together():
        n2.channel._post(Close("stopped"))
        n2.channel._post(order)

    n2.channel._loop.call_soon_threadsafe(post_together)
    assert n2.ends() == (0, "stopped")
    assert n2.agent.stdout.read() == ""


@pytest.mark.parametrize("is_old", [False, True])
def test_a_stage_from_before_a_reboot_does_not_count(node, tmp_path, is_old):
    """Else all nodes would read the whole archive themselves after a maintenance: the tree is for nodes that lack it."""
    prefix = tmp_path / "stage"
    about = {"format": marker.FORMAT, "pack_id": "abc", "prefix": str(prefix)}
    marker.marker_path(prefix).parent.mkdir(parents=True)
    marker.marker_path(prefix).write_text(
        json.dumps({**about, "boot_id": "before" if is_old else marker.boot_id()})
    )
    n2 = node(prefix=str(prefix), pack_id="abc")
    assert n2.answer().has_stage is not is_old
    n2.channel.close_agents("stopped")
    assert n2.ends() == (0, "stopped")


def test_the_ranks_output_reaches_the_log(node):
    n2 = node()
    n2.answer()
    # As a rank's stand-in would: a request that cannot be fulfilled is told where ranks print.
    with socket.socket(socket.AF_UNIX) as stand_in:
        n2.is_connected_by(stand_in)
        socket.send_fds(stand_in, [b"."], [0])
        stand_in.sendall(json.dumps({"no": "request"}).encode())
        stand_in.shutdown(socket.SHUT_WR)
        wait_until(lambda: "a rank on" in n2.log(), "the rank's words", 20)
