"""A host that sees the user's job directories, and has no commands of their batch system."""

import json
import os
import time

import pytest
from standin import endpoint_of

from mpiboot.batch import registry
from mpiboot.batch.job_state import JobState
from mpiboot.client import find, job_states
from mpiboot.client.connect import connect
from mpiboot.client.directories import QUIET_S, DirectoryBatchSystem
from mpiboot.client.show import endpoint_of as ready_endpoint_of
from mpiboot.client.show import table
from mpiboot.errors import BatchError, RendezvousError
from mpiboot.protocol.events import EventLog
from mpiboot.protocol.job_directory import JobDirectory, write_atomic


@pytest.fixture(autouse=True)
def container(tmp_path, monkeypatch):
    """Nothing but the home."""
    registry.batch_system.cache_clear()
    monkeypatch.setattr(job_states, "_caches", {})
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "home"))
    yield
    registry.batch_system.cache_clear()


@pytest.fixture
def running(tmp_path, cluster):
    """Make the directory of a job that runs, with its endpoint."""

    def make(job_id, cluster_name="c", **changes):
        key = f"slurm-{cluster_name}-{job_id}"
        directory = JobDirectory.create(tmp_path / "home", key)
        nodes = [{"name": "n1"}, {"name": "n2"}]
        record = {"job_id": job_id, "batch_system": "slurm", "job_key": key, "nodes": nodes, "end_time": 2e9}
        write_atomic(directory.job, {"asked": {}, "allocation": record})
        events = EventLog(directory.events)
        events.phase("stage", time=1.9e9)
        events.close()
        directory.heartbeat.write_text("1\n")
        directory.publish(endpoint_of(cluster, job_id=job_id, job_key=key, **changes))
        return directory

    return make


def test_connect_needs_no_batch_system(running, cluster):
    running("1234")
    for job in ("1234", None):
        with connect(job, insecure=True, timeout=20) as client:
            assert client.scheduler_info(0)["id"] == cluster.scheduler.id
    job = find.find_job("1234")
    assert job.ask() == JobState(
        "1234", "mpiboot", "running", "running", start=1.9e9, end=2e9, nodes="n1 and 1 more"
    )
    assert "1234  mpiboot  running" in table(find.live_jobs())
    assert ready_endpoint_of(job).job_id == "1234"
    assert job.logs() == f"==> {job.directory.ranks_log} <==\n"


def test_a_foreign_scheduler_is_never_connected_to(running, monkeypatch):
    from mpiboot.client import watch

    monkeypatch.setattr(watch, "SETTLE_S", 0.2)
    running("1234", scheduler_id="another")
    with pytest.raises(RendezvousError, match=r"job 1234 is running, but tcp://\S+ answers as"):
        connect("1234", insecure=True, timeout=20)


def test_two_live_jobs_are_listed(running):
    running("7")
    running("8")
    with pytest.raises(BatchError, match=r"several jobs are live:\n  [78]  mpiboot  running"):
        find.find_job()


def test_a_job_that_has_ended(running):
    directory = running("7")
    job = find.find_job("7")
    events = EventLog(directory.events)
    events.write("closed", reason="stopped", exit_status=0, detail="", host="n1")
    events.close()
    assert job.ask().show() == "ended (stopped)"
    assert find.live_jobs() == []
    directory.clear()  # as boot does at last
    assert find.find_job("7").ask().show() == "ended (stopped)"
    assert find.find_job("7").logs() == f"==> {directory.ranks_log} <==\n"
    with pytest.raises(BatchError, match="job 7 has ended: ended"):
        ready_endpoint_of(find.find_job("7"))
    for other in ("c-7", "../jobs/slurm-c-7", "*", ""):
        with pytest.raises(BatchError, match="is neither a job id nor the name of a live job"):
            find.find_job(other)


def test_a_job_that_boot_has_not_closed_yet_has_not_ended(running):
    directory = running("7")
    directory.clear()  # boot's last event comes after it
    assert find.find_job("7").ask().state == "running"
    long_ago = time.time() - QUIET_S - 60
    os.utime(directory.events, (long_ago, long_ago))
    assert find.find_job("7").ask().show() == "unknown (ended, reason unknown)"


def test_a_job_that_is_silent_is_not_live_and_its_files_stay(running):
    directory = running("7")
    long_ago = time.time() - QUIET_S - 60
    os.utime(directory.heartbeat, (long_ago, long_ago))
    assert find.live_jobs() == []
    assert find.find_job("7").ask().show() == (
        "unknown (nothing was heard of it for 4 min, and Slurm cannot be asked here)"
    )
    assert directory.endpoint.exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", json.dumps({"allocation": {"job_id": "7"}})])
def test_a_directory_that_is_no_job_s(running, damage):
    running("7").job.write_text(damage)
    assert find.live_jobs() == []


def test_no_such_job(tmp_path):
    with pytest.raises(BatchError) as error:
        find.find_job("1234")
    assert str(error.value) == (
        "'1234' is neither a job id nor the name of a live job. See the live ones: mpiboot list. The commands of Slurm "
        f"are not on this machine, and {tmp_path}/home/jobs has no job of that name"
    )


def test_stop_closes_the_cluster(running, monkeypatch):
    from distributed import Client

    directory = running("7")
    closed = []

    def shutdown(client):
        closed.append(client.scheduler.address)
        events = EventLog(directory.events)
        events.write("closed", reason="client-shutdown", exit_status=0, detail="", host="n1")
        events.close()

    monkeypatch.setattr(Client, "shutdown", shutdown)
    assert find.find_job("7").stop(10).show() == "ended (client-shutdown)"
    assert closed == [directory.read_endpoint().address]


def test_what_only_the_batch_system_can_do(running):
    running("7")
    system = DirectoryBatchSystem("slurm")
    with pytest.raises(
        BatchError, match=r"job 7 cannot be ended from here: .*\. Type this on a login node: mpiboot"
    ):
        system.stop("7", by_force=True)
    assert system.job_id_of_key("slurm-c-7") is None
    assert system.states(["9"])["9"].phase == "unknown"


def test_slurm_s_commands_of_another_cluster(running, tmp_path, commands_here):
    commands_here(scontrol="echo 'ClusterName = d'", squeue="")
    running("7")
    running("8", "d")  # this cluster's, which squeue does not know any more
    assert [job.job_id for job, _ in find.live_jobs()] == ["7"]
    with connect("7", insecure=True, timeout=20) as client:
        assert client.status == "running"


def test_slurm_s_commands_without_its_configuration(running, commands_here):
    failing = "echo 'fatal: Unable to process configuration file' >&2; exit 1"
    commands_here(scontrol=failing, squeue=failing)
    running("7")
    assert find.find_job("7").ask().state == "running"
    assert find.find_job().job_id == "7"


@pytest.fixture
def commands_here(tmp_path):
    def write(**scripts):
        (tmp_path / "bin").mkdir()
        for name, lines in {"sbatch": "", **scripts}.items():
            script = tmp_path / "bin" / name
            script.write_text(f"#!/bin/sh\n{lines}\n")
            script.chmod(0o755)

    return write
