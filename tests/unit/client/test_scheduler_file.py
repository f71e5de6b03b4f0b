"""Scheduler files of a real scheduler in this process, and files that lead nowhere."""

import asyncio
import json
import time

import pytest
from standin import later, refusing_address

from mpiboot.client.connect import connect
from mpiboot.errors import MpibootError, RendezvousError, SecurityError


@pytest.fixture
def file(tmp_path, batch):
    return tmp_path / "scheduler.json"


def write(file, cluster, **changes):
    file.write_text(json.dumps({"id": cluster.scheduler.id, "address": cluster.scheduler_address} | changes))


def test_a_scheduler_file(file, cluster):
    write(file, cluster)
    with connect(scheduler_file=file, insecure=True, n_workers=1) as client:
        assert client.submit(sum, [1, 2]).result() == 3


def test_the_path_of_a_scheduler_file_is_expanded(file, cluster, monkeypatch):
    write(file, cluster)
    monkeypatch.setenv("HOME", str(file.parent))
    monkeypatch.setenv("NAME", file.name)
    connect(scheduler_file="~/$NAME", insecure=True).close()


def test_a_scheduler_file_that_comes_late_and_in_pieces(file, cluster):
    later(0.5, lambda: file.write_text('{"id": '))
    later(0.8, lambda: write(file, cluster))
    connect(scheduler_file=str(file), insecure=True, timeout=20).close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty, half-written, or no scheduler file"),
        ('{"id": "Sched', "it is empty, half-written"),
        ("[]", "it is empty, half-written"),
        (json.dumps({"id": "s", "address": refusing_address()}), "no Dask scheduler answers at"),
        (json.dumps({"id": "s", "address": "nonsense://1"}), "no Dask scheduler answers at"),
    ],
    ids=["empty", "half-written", "list", "nobody-listens", "nonsense"],
)
def test_a_scheduler_file_that_leads_nowhere(file, content, message):
    file.write_text(content)
    start = time.monotonic()
    with pytest.raises(RendezvousError, match=message) as error:
        connect(scheduler_file=file, insecure=True)
    assert str(error.value).endswith(f". Start the cluster again, after: rm {file}")
    assert time.monotonic() - start < 5


def test_a_scheduler_file_of_an_earlier_cluster(file, cluster):
    write(file, cluster, id="Scheduler-earlier")
    with pytest.raises(
        RendezvousError, match="not as Scheduler-earlier: the cluster that was published there is gone"
    ):
        connect(scheduler_file=file, insecure=True)


def test_a_plain_scheduler_file_is_refused_unless_it_is_asked_for(file, cluster):
    write(file, cluster)
    with pytest.raises(MpibootError, match="is not encrypted"):
        connect(scheduler_file=file)


def test_a_scheduler_file_that_others_could_write(file, cluster):
    write(file, cluster)
    file.chmod(0o666)
    with pytest.raises(SecurityError, match=r"scheduler\.json"):
        connect(scheduler_file=file, insecure=True)


def test_a_missing_scheduler_file(file):
    with pytest.raises(TimeoutError, match=r"scheduler\.json: it does not exist, after 1\.0 s"):
        connect(scheduler_file=file, timeout=1)


def test_in_a_running_event_loop(file, cluster):
    """As in a notebook."""
    write(file, cluster)

    async def cell():
        connect(scheduler_file=file, insecure=True).close()

    asyncio.run(cell())
