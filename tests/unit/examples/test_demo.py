"""The main job on a real cluster of two workers, on the real flights."""

import os
import subprocess
import sys

import dask.config
import pytest

pytest.importorskip("dask.dataframe", reason="pip install 'mpiboot[demo]'")
pytest.importorskip("dask.array", reason="pip install 'mpiboot[demo]'")

from distributed import Client, LocalCluster

from mpiboot.errors import EnvironmentUnfitError, MpibootError
from mpiboot.examples import demo, flights

try:
    TABLE = flights.read()
except EnvironmentUnfitError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=":0"
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster, monkeypatch):
    monkeypatch.setattr(flights, "read", lambda: TABLE)
    with Client(cluster, set_as_default=False) as client:
        yield client


EVENTS = [
    {"time": 100.0, "event": "phase", "phase": "stage", "seconds": None},
    {"time": 102.5, "event": "phase", "phase": "ready", "seconds": None},
]


def test_the_main_job_is_equal_to_pandas_and_spread_over_all_workers(client):
    texts = []
    result = demo.main_job(client, out=texts.append, events=EVENTS)

    assert result.n_flights == 336_776
    assert result.flights_per_carrier.to_dict() == TABLE.carrier.value_counts().sort_index().to_dict()
    assert result.arr_delay_per_month_min.to_dict() == TABLE.groupby("month").arr_delay.mean().to_dict()
    assert result.array_sum == pytest.approx(1500**2 / 2, rel=0.01)
    assert list(result.seconds) == ["read", "spread", "count", "delay", "array"]
    assert sorted(p.address for p in result.places) == sorted(client.nthreads())
    assert sum(p.n_partitions for p in result.places) == 11
    assert all(p.n_partitions >= 5 and p.n_tasks > p.n_partitions for p in result.places)
    assert {(p.prefix, p.executable) for p in result.places} == {(sys.prefix, sys.executable)}

    lines = "\n".join(texts).splitlines()
    assert [line for line in lines if len(line) > 80 and sys.prefix not in line] == []
    assert " UA        58,665" in [line.rstrip() for line in lines]
    assert "stage      0.00      2.50  " in "\n".join(lines)
    assert lines[-1].startswith("Equal to plain pandas on the same 336,776 flights")
    assert "\x1b" not in "".join(texts)


def test_a_wrong_count_is_an_error_that_names_both(client, monkeypatch):
    spread = flights.spread
    # One flight of the first row's carrier, UA, does not reach the workers.
    monkeypatch.setattr(flights, "spread", lambda client, table, workers: spread(client, table[1:], workers))
    with pytest.raises(MpibootError, match=r"flights per carrier: .*'UA': 58664.*by pandas .*'UA': 58665"):
        demo.main_job(client, out=lambda text: None)


def test_a_wrong_array_is_an_error(client, monkeypatch):
    import dask.array

    generator = dask.array.random.default_rng(1)
    generator.random = lambda shape, chunks: dask.array.ones(shape, chunks=chunks)
    monkeypatch.setattr(dask.array.random, "default_rng", lambda seed: generator)
    with pytest.raises(MpibootError, match=r"array: y sums to 2250000\.0, x to 2250000\.0"):
        demo.main_job(client, out=lambda text: None)


def test_missing_data_names_the_command(monkeypatch):
    monkeypatch.setattr(flights.importlib.metadata, "files", lambda name: None)
    with pytest.raises(EnvironmentUnfitError, match=r"Type: pip install 'mpiboot\[demo\]'$"):
        flights.read()


def test_missing_dask_dataframe_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.dataframe", None)
    with pytest.raises(EnvironmentUnfitError, match=r"Type: pip install 'mpiboot\[demo\]'$"):
        flights.read()


def test_as_a_batch_command(cluster):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DASK_", "MPIBOOT_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "mpiboot.examples.demo"],
        env={**environment, "DASK_SCHEDULER_ADDRESS": cluster.scheduler_address},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"sys.prefix of 2 of 2 workers: {sys.prefix}" in done.stdout


def test_wrong_results_end_with_1(client, monkeypatch, capsys):
    spread = flights.spread
    monkeypatch.setattr(flights, "spread", lambda client, table, workers: spread(client, table[1:], workers))
    with dask.config.set({"scheduler-address": client.scheduler.address}):
        assert demo.main([]) == 1
    assert capsys.readouterr().err.startswith(
        "mpiboot.examples.demo: the results of the cluster are wrong: flights per"
    )


def test_without_a_scheduler_no_cluster_of_its_own_is_started(capsys):
    with dask.config.set({"scheduler-address": None}):
        assert demo.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "mpiboot.examples.demo: DASK_SCHEDULER_ADDRESS names no scheduler. Pass --scheduler-file FILE, or type: "
    )


def test_where_nobody_listens(capsys):
    with dask.config.set(
        {"scheduler-address": "tcp://127.0.0.1:9", "distributed.comm.timeouts.connect": "0.2s"}
    ):
        assert demo.main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mpiboot.examples.demo: no scheduler answers at tcp://127.0.0.1:9")
