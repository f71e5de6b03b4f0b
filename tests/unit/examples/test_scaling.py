"""Scaling of the real flights on a real cluster of two workers. What it times is not asserted."""

import json
import sys

import dask.config
import pytest

pytest.importorskip("dask.dataframe", reason="pip install 'mpiboot[demo]'")

from distributed import Client, LocalCluster

from mpiboot.common.units import show_size
from mpiboot.errors import EnvironmentUnfitError, MpibootError, UsageError
from mpiboot.examples import flights, scaling
from mpiboot.examples.scaling import Measurement, Scaling
from mpiboot.examples.waiting import wait_for

try:
    TABLE = flights.read()[::5]  # every fifth is enough here
except EnvironmentUnfitError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp://",
        memory_limit="2GiB",
        dashboard_address=":0",
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster, monkeypatch):
    monkeypatch.setattr(flights, "read", lambda: TABLE)
    with Client(cluster, set_as_default=False) as client:
        yield client


def test_measures_the_same_data_on_ever_more_workers(client):
    lines = []
    size_bytes = int(2.2 * TABLE.memory_usage(deep=True).sum())
    result = scaling.measure(client, size_bytes=size_bytes, repeat=2, progress=lines.append)

    assert (result.n_rows, result.n_partitions) == (2 * 67_356, 4)
    assert [(m.n_workers, m.n_nodes, m.n_threads, len(m.seconds)) for m in result.measurements] == [
        (1, 1, 1, 2),
        (2, 1, 2, 2),
    ]
    one, two = result.measurements
    assert (one.speedup, one.efficiency) == (1, 1)
    assert two.speedup == pytest.approx(one.median_s / two.median_s)
    assert two.efficiency == pytest.approx(two.speedup / 2)
    assert [line.split(" on ")[1] for line in lines] == ["1 of 2 workers", "2 of 2 workers"]


def test_a_worker_that_was_not_chosen_does_nothing(client, monkeypatch):
    def executed():
        return client.run(lambda dask_worker: dask_worker.state.executed_count)

    # Idle workers steal only from long queues, so that the counts alone would not show a missing restriction.
    restrictions = []
    compute = client.compute
    monkeypatch.setattr(client, "compute", lambda what, **kw: restrictions.append(kw) or compute(what, **kw))
    first, second = (w.address for w in scaling._workers(client))
    before = executed()
    scaling.measure(client, size_bytes=1, counts=[1], repeat=1)
    after = executed()
    assert after[second] == before[second]
    assert after[first] > before[first]
    assert restrictions == 2 * [{"workers": [first], "allow_other_workers": False}]


@pytest.mark.parametrize("strict", [True, False])
def test_pieces_leave_their_workers_only_where_they_may(client, cluster, strict):
    workers = sorted(client.nthreads())
    _, pieces = flights.spread(client, TABLE, workers, n_pieces=4, strict=strict)
    wait_for(client, pieces, timeout_s=10)
    tasks = [cluster.scheduler.tasks[piece.key] for piece in pieces]
    assert [task.worker_restrictions for task in tasks] == [{workers[i % 2]} for i in range(4)]
    assert {task.loose_restrictions for task in tasks} == {not strict}


def test_other_sums_than_those_of_pandas_are_an_error(client, monkeypatch):
    spread = flights.spread
    monkeypatch.setattr(
        flights, "spread", lambda client, table, *args, **kw: spread(client, table[1:], *args, **kw)
    )
    with pytest.raises(MpibootError, match="the sums of 1 workers differ from those of plain pandas"):
        scaling.measure(client, size_bytes=1, counts=[1], repeat=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": [1, 3]}, "--workers 1,3: the job has 2. Pass numbers from 1 to 2"),
        ({"counts": [0]}, "--workers 0: the job has 2. Pass numbers from 1 to 2"),
        ({"repeat": 0}, "--repeat 0 is too few. Pass 1 or more"),
        (
            {"size_bytes": 1024**3},
            r".* do not fit 1 worker\(s\), .* beyond 819 MiB. Pass a smaller --size, or begin with more",
        ),
    ],
)
def test_what_cannot_be_measured_is_said_before_any_work(client, options, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        scaling.measure(client, **options)


@pytest.mark.parametrize(
    ("n_workers", "counts"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])],
)
def test_counts_double_and_end_with_all(n_workers, counts):
    assert scaling._counts(None, n_workers) == counts


SCALING = Scaling(
    size_bytes=1024**3,
    n_rows=5_725_192,
    n_partitions=24,
    measurements=[
        Measurement(1, 1, 4, [8.1, 8.0, 8.3], 8.1, 1.0, 1.0),
        Measurement(2, 1, 8, [4.5, 4.6, 4.4], 4.5, 1.8, 0.9),
        Measurement(4, 2, 16, [4.1, 4.05, 4.2], 4.05, 2.0, 0.5),
        Measurement(8, 4, 32, [5.1, 5.0, 5.2], 5.1, 1.588, 0.1985),
    ],
)
REPORT = """\
5,725,192 flights (1 GiB) in 24 partitions

 workers  nodes  threads  seconds  fastest  slowest  speed-up  efficiency
 ─────────────────────────────────────────────────────────────────────────
       1      1        4    8.100    8.000    8.300      1.00        100%
       2      1        8    4.500    4.400    4.600      1.80         90%
       4      2       16    4.050    4.050    4.200      2.00         50%
       8      4       32    5.100    5.000    5.200      1.59         20%

Fastest on 4 worker(s); at least half efficient up to 4."""


def test_report():
    assert [line.rstrip() for line in scaling.report(SCALING).splitlines()] == REPORT.splitlines()


def test_plot(tmp_path):
    pytest.importorskip("matplotlib", reason="pip install 'mpiboot[plot]'")
    scaling.plot(SCALING, tmp_path / "scaling.svg")
    assert "<!-- speed-up against 1 worker(s) -->" in (tmp_path / "scaling.svg").read_text()


def test_main_prints_and_writes(client, tmp_path, capsys):
    file = tmp_path / "scaling.json"
    with dask.config.set({"scheduler-address": client.scheduler.address}):
        assert scaling.main(["--size=1M", "--workers=2", "--repeat=1", f"--json={file}"]) == 0
    out, err = capsys.readouterr()
    size = show_size(TABLE.memory_usage(deep=True).sum())
    assert err == f"{size} on 2 of 2 workers\n"
    assert out.startswith(f"67,356 flights ({size}) in 4 partitions")
    assert json.loads(file.read_text())["measurements"][0]["n_workers"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "much"], "--size: 'much' is not a size. Write 800M, "),
        (["--workers", "1,two"], "--workers: 'two' is not a count. Write "),
        (["--json", "/no/such/folder/a.json"], "/no/such/folder/a.json: its folder does not exist"),
        (
            [],
            "DASK_SCHEDULER_ADDRESS names no scheduler. "
            "Pass --scheduler-file FILE, or type: mpiboot submit -- python -m mpiboot.examples.scaling",
        ),
    ],
)
def test_bad_input(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    assert scaling.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"mpiboot.examples.scaling: {message}")


def test_missing_matplotlib_is_said_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert scaling.main(["--plot", str(tmp_path / "a.png")]) == 1
    assert capsys.readouterr().err.endswith(". Type: pip install 'mpiboot[plot]'\n")
