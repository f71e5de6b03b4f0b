"""A job of five nodes goes on while the shared file system stalls."""

import time
from pathlib import Path

import pytest
from faults import assert_nothing_remains, boot
from slurmcluster import Minicluster
from stream import Stream, stop
from user import User

pytestmark = pytest.mark.cluster

STALL_S = 30


def signal_file_servers(user, name):
    """Stall every read and write on the nodes' shared file system (STOP), or let them go on (CONT)."""
    user.types("bash", "-c", f"kill -{name} $(pgrep -x sftp-server)")


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="no /dev/fuse here: `modprobe fuse` enables it")
@pytest.mark.usefixtures("minicluster")  # for its reasons to skip
def test_five_nodes_and_a_shared_file_system_that_stalls():
    with Minicluster.booted("--nodes=5", "--shared-fs=sshfs", suffix="five") as cluster:
        cluster.add_env("env", ["openmpi", "demo", "notebook"])
        stalls(User(cluster))


def stalls(user):
    # Where /tmp is memory, the stage is counted in.
    job = boot(user, "--nodes", "5", "--workers-per-node", "1", "--mem", "2G", staged=True)
    stream = Stream(job, 5)
    stream.until("at work with 5 workers")
    assert {event["host"] for event in job.named("worker")} == {f"node{number}" for number in range(1, 6)}
    signal_file_servers(user, "STOP")
    end = time.monotonic() + STALL_S
    try:
        while time.monotonic() < end:
            stream.goes_on()
    finally:
        signal_file_servers(user, "CONT")
    stream.ends_well()
    assert job.named("lost-worker") == []
    stop(job)
    assert_nothing_remains(user, range(1, 6))
