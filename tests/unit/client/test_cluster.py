"""MPICluster over a real scheduler; the job alone is a stand-in."""

import asyncio

import pytest
from distributed import Client, LocalCluster

from mpiboot.batch.job_state import JobState
from mpiboot.client import cluster as clusters
from mpiboot.errors import JobEndedError
from mpiboot.protocol.endpoint import Endpoint

# The LocalCluster that stands for the job listens to its workers too.
pytestmark = pytest.mark.filterwarnings("ignore:Scheduler already contains a plugin with name worker-status")


class Batch:
    name = "stand-in"

    def stop(self, job_id):
        self.stopped = job_id


class Job:
    job_id = "7"

    def __init__(self):
        self.batch = Batch()
        self.stops = 0

    def stop(self):
        self.stops += 1
        return JobState("7", "", "ended", "COMPLETED")

    def logs(self):
        return "what the job wrote"

    def how_to_come_back(self, insecure):
        return "job 7 goes on. Come back: mpiboot connect 7"


@pytest.fixture(scope="module")
def local():
    with LocalCluster(n_workers=1, processes=False, protocol="tcp", dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def job(monkeypatch, local):
    """What is submitted is a stand-in, and it is ready at once."""
    job = Job()
    endpoint = Endpoint(
        **{
            "job_id": "7",
            "job_key": "k",
            "nonce": "n",
            "restart_count": 0,
            "scheduler_id": local.scheduler.id,
        },
        **{
            "n_workers": 1,
            "n_threads": 1,
            "memory_bytes": 1,
            "nodes": ["n1"],
            "interface": "lo",
            "addresses": {},
        },
        **{
            "prefix": "/p",
            "source_prefix": "/p",
            "end_time": None,
            "published": 1.0,
            "dashboard": "http://x:1/",
        },
        address=local.scheduler_address,
    )

    def ready(job, *, tell, **_):
        tell("job 7 is staging")
        return endpoint, None

    monkeypatch.setattr(
        clusters, "load_config", lambda options: type("Config", (), {"insecure": True, **options})
    )
    monkeypatch.setattr(clusters, "submit_config", lambda config, say: job)
    monkeypatch.setattr(clusters, "wait_for_endpoint", ready)
    return job


def test_it_is_a_cluster_as_any_other(job, local):
    with clusters.MPICluster(nodes=1) as cluster:
        assert f", '{local.scheduler_address}', workers=1, threads=" in repr(cluster)
        assert "MPICluster" in cluster._repr_html_()
        assert cluster.dashboard_link.startswith("http://127.0.0.1:")
        with Client(cluster) as client:
            assert client.submit(sum, [1, 2]).result() == 3
        logs = cluster.get_logs()
        assert logs["Cluster"].splitlines() == ["job 7 is staging", "job 7 is ready: 1 workers"]
        assert logs["Job"] == "what the job wrote" and "Scheduler" in logs
        assert job.stops == 0
    assert (job.stops, cluster.status.name) == (1, "closed")
    cluster.close()
    assert job.stops == 1


@pytest.mark.parametrize(
    "change", [lambda cluster: cluster.scale(3), lambda cluster: cluster.adapt(minimum=1)]
)
def test_the_size_of_one_job_is_fixed(job, change):
    with (
        clusters.MPICluster() as cluster,
        pytest.raises(NotImplementedError, match="one job's size is fixed"),
    ):
        change(cluster)


def test_in_an_event_loop(job):
    async def use():
        async with (
            clusters.MPICluster(asynchronous=True) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            return await client.submit(sum, [1, 2])

    assert asyncio.run(use()) == 3
    assert job.stops == 1


def test_what_fails_to_start_is_stopped(job, monkeypatch):
    def fail(job, **_):
        raise JobEndedError("job 7 cannot start", "Give it up: mpiboot stop 7")

    monkeypatch.setattr(clusters, "wait_for_endpoint", fail)
    with pytest.raises(JobEndedError, match="job 7 cannot start"):
        clusters.MPICluster()
    assert job.batch.stopped == "7"


def test_a_ctrl_c_leaves_the_job_alone(job, monkeypatch):
    def interrupt(job, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(clusters, "wait_for_endpoint", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"job 7 goes on\. Come back: mpiboot connect 7"):
        clusters.MPICluster()
    assert not hasattr(job.batch, "stopped")


def test_a_forgotten_cluster_stops_its_job(job):
    cluster = clusters.MPICluster()
    cluster._stop()  # as at the end of the interpreter
    assert job.batch.stopped == "7"
    cluster.close()
