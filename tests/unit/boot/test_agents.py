import contextlib
import errno
import time
from types import SimpleNamespace

import pytest

from mpiboot.boot import agents
from mpiboot.boot.certificates import make_job_secrets
from mpiboot.boot.channel import Change
from mpiboot.errors import LaunchError, StageError
from mpiboot.protocol import listener
from mpiboot.protocol.channel_messages import ChannelAddress, Failure, Orders, StageReport
from mpiboot.protocol.events import EventLog
from mpiboot.protocol.job_directory import JobDirectory

GOOD = StageReport(1, {})


@contextlib.contextmanager
def started_agents(tmp_path, monkeypatch, *nodes, command=("true",), close_s=1.0, worker_port=None):
    """Agents of a batch system with several hosts, on a host without a network, and the job directory."""
    directory = JobDirectory.create(tmp_path / "home", "slurm-c-7")
    make_job_secrets(directory.path, valid_for_s=600)
    monkeypatch.setattr(agents, "interfaces", lambda: {"lo": {"address": "127.0.0.1", "loopback": True}})
    monkeypatch.setattr(agents, "write_agent_program", lambda path: None)
    context = SimpleNamespace(
        allocation=SimpleNamespace(node_names=nodes, nodes=nodes, batch_system="slurm"),
        system=SimpleNamespace(
            several_hosts=True,
            node_variable=None,
            on_every_node=lambda _allocation, _command: list(command),
        ),
        directory=directory,
        config=SimpleNamespace(interface="auto", worker_port=worker_port),
        events=EventLog(directory.events),
        job_environment=dict,
    )
    orders = Orders(0, "n1", len(nodes), "/tmp", "slurm-c-7", 1, None, None, None)
    with contextlib.closing(context.events):
        started = agents.Agents(context, orders)
        try:
            yield started, directory
        finally:
            started.close("stopped", close_s)


def test_the_only_node_of_a_job_needs_no_network(tmp_path, monkeypatch):
    with started_agents(tmp_path, monkeypatch, "n1") as (_, directory):
        address = ChannelAddress.from_json(directory.channel.read_bytes())
    assert address.addresses == ["127.0.0.1"]


@pytest.mark.parametrize(("granted", "expected"), [(None, "3"), ("3", "")])
def test_a_node_has_the_devices_that_the_batch_system_gives_there(tmp_path, monkeypatch, granted, expected):
    """Those of the first node, where boot runs, are no other node's. Without such a grant, the user has set them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    if granted:
        monkeypatch.setenv("SLURM_JOB_GPUS", granted)
    show = f'printf %s "$CUDA_VISIBLE_DEVICES" > {tmp_path}/devices'
    with started_agents(tmp_path, monkeypatch, "n1", command=("sh", "-c", show)) as (started, _):
        started.process.wait(20)
    assert (tmp_path / "devices").read_text() == expected


def test_what_happened_to_agents_is_in_the_events_when_the_job_ends(tmp_path, monkeypatch):
    with started_agents(tmp_path, monkeypatch, "n1") as (started, directory):
        started._channel.changes.append(Change("lost-agent", "n1", "it was killed"))
    (event,) = directory.read_events()
    assert (event["event"], event["host"], event["detail"]) == ("lost-agent", "n1", "it was killed")


def test_a_start_command_that_hangs_does_not_hold_up_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(agents, "END_GRACE_S", 0.2)
    sleep = ("sleep", "60")
    with started_agents(tmp_path, monkeypatch, "n1", command=sleep, close_s=20.0) as (started, _):
        started._channel.nodes["n1"].ended = "stopped"
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert started.process.poll() is not None


def test_answers_come_in_the_order_of_the_nodes():
    first, second = StageReport(1, {"seconds": 1.0}), StageReport(1, {"seconds": 2.0})
    answers = agents.check_answers(["n1", "n2"], StageReport, {"n2": second, "n1": first}, {}, "")
    assert list(answers.items()) == [("n1", first), ("n2", second)]


@pytest.mark.parametrize(
    ("answers", "ended", "problem"),
    [
        (
            {"n1": Failure(1, "no room"), "n2": GOOD, "n3": GOOD},
            {},
            "1 of 3 nodes could not be prepared:\n  n1: no room",
        ),
        ({"n1": GOOD}, {}, "2 of 3 nodes could not be prepared:\n  n2, n3: no answer. killed"),
        (
            {"n1": Failure(1, "no room"), "n2": GOOD},
            {},
            "2 of 3 nodes could not be prepared:\n  n1: no room\n  n3: no answer. killed",
        ),
        (
            {"n1": Failure(1, "no room"), "n2": GOOD},
            {"n3": "it was cancelled", "n2": "after its answer"},
            "2 of 3 nodes could not be prepared:\n  n1: no room\n  n3: it was cancelled",
        ),
    ],
)
def test_every_node_that_failed_is_named(answers, ended, problem):
    with pytest.raises(StageError) as error:
        agents.check_answers(["n1", "n2", "n3"], StageReport, answers, ended, "killed")
    assert str(error.value) == (
        f"{problem}\nCorrect these failures, or exclude the nodes, and submit the job again"
    )


def test_agents_that_do_not_reach_boot_are_named_before_the_deadline(tmp_path, monkeypatch):
    """They cannot say it over the channel; the command that starts agents goes on with those of other nodes."""
    with started_agents(tmp_path, monkeypatch, "n1", "n2", command=("sleep", "60")) as (started, directory):
        directory.unreached.write_text(
            '["n2", "boot could not be reached for 45 s"]\n["n1", "too"]\n["n3", ""]\n45\n["n'
        )
        began = time.monotonic()
        with pytest.raises(StageError) as error:
            started.reports()
        assert str(error.value).splitlines()[1:3] == ["  n1: too", "  n2: boot could not be reached for 45 s"]
        assert time.monotonic() - began < 10


def test_boot_listens_in_the_range_of_the_user(tmp_path, monkeypatch):
    with started_agents(tmp_path, monkeypatch, "n1", worker_port="41000:41099") as (_, directory):
        assert ChannelAddress.from_json(directory.channel.read_bytes()).port in range(41080, 41100)


def test_a_range_without_a_free_port_is_an_error_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(listener.socket, "create_server", taken)
    with (
        pytest.raises(LaunchError, match=r"no port from 41080 to 41099 is free here \(--worker-port\): name"),
        started_agents(tmp_path, monkeypatch, "n1", worker_port="41000:41099"),
    ):
        pass


def taken(*_, **__):
    raise OSError(errno.EADDRINUSE, "Address already in use")
