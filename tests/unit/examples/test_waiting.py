"""Bounded waits on a real cluster."""

import time

import distributed
import pytest
from distributed import Client, LocalCluster

from mpiboot.errors import ClusterLostError, DeadlineError, MpibootError
from mpiboot.examples import waiting


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_a_task_that_fails_is_named(client):
    with pytest.raises(MpibootError, match="ZeroDivisionError"):
        waiting.gather(client, [client.submit(lambda: 1 / 0)], timeout_s=5)


def test_waiting_ends_at_the_deadline(client):
    with pytest.raises(
        DeadlineError, match=r"the computation is not done after 0\.1 s, with 2 workers connected"
    ):
        waiting.wait_for(client, [client.submit(time.sleep, 0.5)], timeout_s=0.1)


def test_a_timeout_is_dasks_own(client, monkeypatch):
    """Before Python 3.11, it is not the built-in TimeoutError."""

    class DasksTimeoutError(Exception):
        pass

    def wait(*_, **__):
        raise DasksTimeoutError

    monkeypatch.setattr(distributed, "TimeoutError", DasksTimeoutError)
    monkeypatch.setattr(distributed, "wait", wait)
    with pytest.raises(DeadlineError):
        waiting.wait_for(client, [], timeout_s=0.1)


def test_a_lost_scheduler_ends_the_wait(client):
    future = client.submit(time.sleep, 0.5)
    future.cancel()
    with pytest.raises(ClusterLostError):
        waiting.wait_for(client, [future], timeout_s=5)


def test_a_lost_worker_that_is_needed_ends_the_wait(client, monkeypatch):
    monkeypatch.setattr(waiting, "_LIVENESS_S", 0.05)
    address = next(iter(client.nthreads()))
    future = client.submit(time.sleep, 0.5)
    waiting.wait_for(client, [future], timeout_s=5, needs=[address])
    with pytest.raises(ClusterLostError, match="lost 1 of the workers that were computing: tcp://gone:1"):
        waiting.wait_for(
            client, [client.submit(time.sleep, 0.6)], timeout_s=5, needs=[address, "tcp://gone:1"]
        )
