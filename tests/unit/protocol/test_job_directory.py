import json

import pytest

from mpiboot.errors import RendezvousError, SecurityError
from mpiboot.protocol.job_directory import Endpoint, EventLog, JobDirectory

ENDPOINT = Endpoint(
    job_id="1",
    job_key="slurm-c-1",
    nonce="n",
    restart_count=0,
    scheduler_id="Scheduler-1",
    address="tls://10.0.0.1:1",
    dashboard="http://10.0.0.1:2/status",
    n_workers=8,
    n_threads=1,
    memory_bytes=1,
    nodes=["n1"],
    interface="ib0",
    prefix="/tmp/e",
    source_prefix="/home/e",
    end_time=None,
    published=1.0,
)


@pytest.fixture
def directory(tmp_path):
    return JobDirectory.create(tmp_path / "home", "slurm-c-1")


def test_what_is_published_is_read(directory):
    assert directory.read_endpoint() is None
    directory.publish(ENDPOINT)
    assert directory.read_endpoint() == ENDPOINT
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.path.iterdir()}
    assert modes == dict.fromkeys(("endpoint.json", "hosts", "ranks.log"), 0o600)
    assert directory.endpoint.stat().st_mode & 0o777 == 0o600


def test_a_job_that_starts_again_withdraws_what_it_had_published(directory):
    directory.publish(ENDPOINT)
    directory.scheduler_file.write_text("{}")
    again = JobDirectory.create(directory.path.parent.parent, "slurm-c-1")
    assert again.read_endpoint() is None
    assert not again.scheduler_file.exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        json.dumps({"version": 2}),
        json.dumps(ENDPOINT._replace(version=3)._asdict()),
        json.dumps(ENDPOINT._asdict() | {"n_workers": "8"}),
        json.dumps(ENDPOINT._asdict() | {"n_workers": True}),
        json.dumps(ENDPOINT._asdict() | {"address": None}),
    ],
    ids=range(10),
)
def test_what_is_no_endpoint_is_refused(directory, content):
    directory.endpoint.write_text(content)
    directory.endpoint.chmod(0o600)
    with pytest.raises(RendezvousError, match=r"endpoint\.json"):
        directory.read_endpoint()


def test_an_endpoint_that_others_could_write_is_refused(directory):
    directory.publish(ENDPOINT)
    directory.endpoint.chmod(0o666)
    with pytest.raises(SecurityError, match=r"endpoint\.json"):
        directory.read_endpoint()


def test_a_half_written_event_waits_for_the_next_read(directory):
    log = EventLog(directory.events)
    log.phase("stage", nodes=["n1"])
    with directory.events.open("a") as file:
        file.write('{"time": 1, "event": "wor')
    assert [event["event"] for event in directory.read_events()] == ["phase"]
    log.close()
