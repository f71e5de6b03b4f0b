"""Waits against a real scheduler in this process; the batch system alone is a stand-in that says what it is told to."""

import dataclasses
import socket
import threading
import time

import pytest
from standin import PENDING, RUNNING, endpoint_of, later, refusing_address

from mpiboot.batch.job_state import JobState
from mpiboot.client import published, watch
from mpiboot.client.connect import connect
from mpiboot.client.job import Job
from mpiboot.client.verify import SchedulerIdentity
from mpiboot.errors import (
    BatchError,
    DeadlineError,
    JobEndedError,
    MpibootError,
    RendezvousError,
    SecurityError,
)
from mpiboot.protocol.events import EventLog
from mpiboot.protocol.job_directory import JobDirectory


@pytest.fixture
def listener(request):
    """An address where something else listens: it is silent, or says what `request.param` holds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection)
                if request.param:
                    connection.sendall(request.param)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in connections:
            connection.close()


def test_connects_and_says_what_goes_on(job, batch, cluster):
    batch.state = lambda n: PENDING if n < 3 else RUNNING
    events = EventLog(job.directory.events)
    events.phase("stage")
    events.write("step", step="copy", n_lacking=1, n_nodes=2)
    later(0.5, lambda: job.directory.publish(endpoint_of(cluster)))
    said = []
    with connect(job, insecure=True, progress=said.append) as client:
        assert client.submit(sum, [1, 2]).result() == 3
    events.close()
    assert said == [
        "job 7 is PENDING (Resources)",
        "job 7 is staging the environment on 1 of 2 nodes",
        "job 7 is ready: 1 workers",
    ]


def test_a_plain_address_is_refused_unless_it_is_asked_for(job, cluster):
    job.directory.publish(endpoint_of(cluster))
    with pytest.raises(MpibootError, match=r"is not encrypted.*pass insecure=True"):
        connect(job)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"address": refusing_address()},
            r"job 7 is RUNNING, but no Dask scheduler answers at tcp://127\.0\.0\.1",
        ),
        ({"scheduler_id": "Scheduler-old"}, "answers as Scheduler-.*, not as Scheduler-old"),
        ({"job_key": "stand-in-8"}, "endpoint.json is of job stand-in-8, not of stand-in-7"),
        ({"version": 1}, "version 1; this mpiboot reads version 3"),
    ],
    ids=["nobody-listens", "another-scheduler", "another-job", "another-version"],
)
def test_a_foreign_endpoint_is_never_connected_to(job, cluster, change, message):
    job.directory.publish(endpoint_of(cluster, **change))
    start = time.monotonic()
    said = []
    with pytest.raises(RendezvousError, match=message):
        connect(job, insecure=True, progress=said.append)
    assert time.monotonic() - start < 5
    assert [line for line in said if "answer" in line and not line.startswith("job 7: ")] == [], said


@pytest.mark.parametrize(
    "listener", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], indirect=True, ids=["mute", "http"]
)
def test_where_something_else_listens(job, cluster, listener):
    job.directory.publish(endpoint_of(cluster, address=listener))
    with pytest.raises(RendezvousError, match=f"no Dask scheduler answers at {listener}: "):
        connect(job, insecure=True)


@pytest.mark.parametrize("content", ["", '{"version": 2, "job_id"'], ids=["empty", "half-written"])
def test_a_partial_endpoint(job, content):
    job.directory.endpoint.touch(mode=0o600)
    job.directory.endpoint.write_text(content)
    with pytest.raises(RendezvousError, match="is not an endpoint of mpiboot"):
        connect(job, insecure=True)


def test_an_endpoint_that_others_could_write(job, cluster):
    job.directory.publish(endpoint_of(cluster))
    job.directory.endpoint.chmod(0o666)
    with pytest.raises(SecurityError, match=r"open to others|written by others"):
        connect(job, insecure=True)


def test_what_a_job_published_before_its_requeue_is_void(job, batch, cluster):
    """The job runs again, but boot has not removed the old endpoint yet."""
    batch.restarted = 1
    job.directory.publish(endpoint_of(cluster, scheduler_id="Scheduler-old", address=refusing_address()))
    later(0.5, lambda: job.directory.publish(endpoint_of(cluster, nonce="b", restart_count=1)))
    said = []
    with connect(job, insecure=True, progress=said.append) as client:
        assert client.scheduler.address == cluster.scheduler_address
    assert said == ["job 7 is starting", "job 7 is ready: 1 workers"]


def test_a_job_that_is_requeued_meanwhile_is_waited_for(job, batch, cluster):
    batch.state = lambda n: PENDING if n in (2, 3) else RUNNING
    later(0.6, lambda: job.directory.publish(endpoint_of(cluster)))
    said = []
    connect(job, insecure=True, progress=said.append).close()
    assert said[:3] == ["job 7 is starting", "job 7 is PENDING (Resources)", "job 7 is starting"]


def test_a_job_that_is_requeued_under_a_client_that_waits_for_workers(job, batch, cluster):
    job.directory.publish(endpoint_of(cluster, n_workers=2))
    said = []

    def tell(line):
        said.append(line)
        if line == "job 7: 1 of 2 workers":
            batch.state, batch.restarted = PENDING, 1
        elif "PENDING" in line:
            job.directory.publish(endpoint_of(cluster, nonce="b", restart_count=1))
            batch.state = RUNNING

    connect(job, insecure=True, progress=tell).close()
    assert said[-3:] == [
        "job 7: 1 of 2 workers",
        "job 7 is PENDING (Resources)",
        "job 7 is ready: 1 workers",
    ]


def test_a_late_directory_is_waited_for(batch, cluster, tmp_path):
    def create():
        JobDirectory.create(tmp_path / 'it\'s a "home"', "stand-in-7").publish(endpoint_of(cluster))

    later(1, create)
    connect(Job("7", batch), insecure=True).close()


def test_workers_that_are_lost_for_good_do_not_hold_a_client_back(job, cluster, caplog):
    job.directory.publish(endpoint_of(cluster, n_workers=3))
    said = []
    connect(job, insecure=True, progress=said.append).close()
    assert said[-1] == "job 7: 1 of 3 workers; the others are lost"
    warned = [record.message for record in caplog.records if record.name.startswith("mpiboot")]
    assert warned == [f"{said[-1]}. See where and why: mpiboot status 7"]


@pytest.mark.parametrize(("insecure", "flag"), [(True, " --insecure"), (False, "")])
def test_the_next_steps_accept_what_the_user_has_accepted(job, insecure, flag):
    assert job.how_to_come_back(insecure) == (
        f"job 7 goes on. Come back: mpiboot connect 7{flag}; end it: mpiboot stop 7"
    )
    with pytest.raises(DeadlineError) as error:
        connect(job, insecure=insecure, timeout=0.1)
    assert error.value.remedy == f"Go on waiting: mpiboot connect 7{flag}; give it up: mpiboot stop 7"


def test_workers_that_are_asked_for_are_waited_for(job, cluster):
    job.directory.publish(endpoint_of(cluster))
    with pytest.raises(
        DeadlineError, match=r"job 7 is not ready 1\.0 s after its start: 1 of 2 workers\n"
    ) as error:
        connect(job, insecure=True, n_workers=2, timeout=1)
    assert (
        str(error.value).splitlines()[-1]
        == "Go on waiting: mpiboot connect 7 --insecure; give it up: mpiboot stop 7"
    )


def test_another_minor_version_of_python_is_an_error(job, cluster, monkeypatch):
    job.directory.publish(endpoint_of(cluster))
    monkeypatch.setattr(
        published, "ask_scheduler", lambda *_: SchedulerIdentity(cluster.scheduler.id, 1, (3, 8))
    )
    with pytest.raises(
        MpibootError, match=r"the cluster runs Python 3\.8 and this is .*\. Use the cluster's: /p/bin/python$"
    ):
        connect(job, insecure=True)


@pytest.mark.parametrize("word", ["CANCELLED", "FAILED", "OUT_OF_MEMORY", "NODE_FAIL", "TIMEOUT"])
def test_an_ended_job_is_an_error_with_the_end_of_its_log(job, batch, word):
    job.directory.boot_log.write_text("".join(f"line {i}\n" for i in range(100)))
    batch.state = JobState("7", "mpiboot", "ended", word, "Reason")
    with pytest.raises(JobEndedError) as error:
        connect(job)
    assert str(error.value).splitlines()[:3] == [
        f"job 7 has ended: {word} (Reason)",
        f"The end of {job.directory.boot_log}:",
        "  line 80",
    ]
    assert str(error.value).splitlines()[-1] == "Read all of it: mpiboot logs 7"


def test_boots_last_word_explains_more_than_the_batch_system(job, batch):
    log = EventLog(job.directory.events)
    log.write("closed", reason="mpirun ended with status 1", exit_status=1)
    log.close()
    batch.state = JobState("7", "mpiboot", "unknown", "UNKNOWN")
    with pytest.raises(JobEndedError, match=r"job 7 has ended: EXIT 1 \(mpirun ended with status 1\)"):
        connect(job)


def test_an_ended_job_of_which_nothing_is_known(job, batch):
    batch.state = JobState("7", "", "unknown", "UNKNOWN")
    with pytest.raises(
        JobEndedError,
        match=r"job 7 has ended: UNKNOWN \(ended, reason unknown\)\nIt left no log\.\nSubmit it",
    ):
        connect(job)


def test_an_ended_job_whose_node_could_not_write_its_log(job, batch):
    """As where homes are read-only on the nodes."""
    batch.state = JobState("7", "", "ended", "FAILED", "JobLaunchFailure", nodes="node1")
    with pytest.raises(JobEndedError) as error:
        connect(job)
    assert str(error.value) == (
        "job 7 has ended: FAILED (JobLaunchFailure)\n"
        f"It left no log. Perhaps the node could not write {job.directory.path.parents[1]}/logs/stand-in-7.out\n"
        "Find out: mpiboot doctor --job-test; if so, export MPIBOOT_HOME=FOLDER, one that this machine and all nodes can "
        "write, and submit it again"
    )


def test_an_ended_command_whose_node_could_not_write_its_log(job, batch, tmp_path, monkeypatch):
    """As where it was submitted from the login node's own /tmp: its home is well."""
    monkeypatch.setattr(type(batch), "output", lambda self, job_id: tmp_path / "slurm-7.out")
    batch.state = JobState("7", "", "ended", "FAILED", "JobLaunchFailure", nodes="node1")
    with pytest.raises(JobEndedError) as error:
        connect(job)
    assert str(error.value) == (
        "job 7 has ended: FAILED (JobLaunchFailure)\n"
        f"It left no log. Perhaps the node could not write {tmp_path}/slurm-7.out\n"
        "Submit it again from a folder that this machine and all nodes can write"
    )


def test_a_job_that_can_never_start(job, batch):
    batch.state = JobState("7", "mpiboot", "pending", "PENDING", "PartitionNodeLimit", cannot_start=True)
    said = []
    with pytest.raises(JobEndedError, match=r"job 7 cannot start: PENDING \(PartitionNodeLimit\)"):
        connect(job, progress=said.append)
    assert said == ["job 7 is PENDING (PartitionNodeLimit)"]


def test_a_job_that_can_never_start_is_waited_for_as_long_as_asked(job, batch):
    batch.state = JobState("7", "mpiboot", "pending", "PENDING", "PartitionNodeLimit", cannot_start=True)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"job 7 is still PENDING \(PartitionNodeLimit\) after 0\.[56] s"):
        connect(job, queue_timeout=0.5)
    assert time.monotonic() - start < 1.5


def test_the_timeout_counts_from_the_jobs_start(job, batch):
    batch.state = dataclasses.replace(RUNNING, start=time.time() - 60)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="job 7 is not ready 1 min 1 s after its start: starting"):
        connect(job, timeout=61)
    assert time.monotonic() - start < 3


def test_a_batch_system_that_is_away_for_a_moment_is_asked_again(job, batch, cluster):
    batch.state = lambda n: (
        BatchError("squeue: slurmctld is away", "See: sinfo") if n == 2 else (PENDING if n == 1 else RUNNING)
    )
    job.directory.publish(endpoint_of(cluster))
    said = []
    connect(job, insecure=True, progress=said.append).close()
    assert "job 7: squeue: slurmctld is away; asking again" in said


def test_a_batch_system_that_is_away_for_long_is_an_error(job, batch, monkeypatch):
    monkeypatch.setattr(watch, "SILENCE_S", 0.3)
    batch.state = lambda n: PENDING if n == 1 else BatchError("squeue: slurmctld is away", "See: sinfo")
    with pytest.raises(BatchError, match="slurmctld is away"):
        connect(job)


def test_ctrl_c_says_how_to_come_back(job, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupt)
    with pytest.raises(
        KeyboardInterrupt, match=r"job 7 goes on\. Come back: mpiboot connect 7; end it: mpiboot stop 7"
    ):
        connect(job)
