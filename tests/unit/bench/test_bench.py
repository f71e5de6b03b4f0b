"""The bench's arithmetic; what it times is not asserted anywhere."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def module(monkeypatch):
    """A module of the bench by name, gone again after the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name in {path.stem for path in BENCH.glob("*.py")}:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], "-"),
        ([None], "-"),
        ([1.234], "1.23"),
        ([3.0, None, 1.0, 2.0], "2.00 (1.00-3.00)"),
        ([1234.5], "1,234"),
        ([45.67], "45.7"),
    ],
)
def test_show(module, values, shown):
    assert module("figures").show(values) == shown


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [
        (
            [1.0, 2.0, 4.0],
            [2.0, 4.0, 40.0],
            2.0,
        ),  # each round's own ratio: the third round's load does not count
        ([2.0], [1.0, 4.0, 9.0], 2.0),  # not the same rounds: the medians'
        ([], [1.0], None),
        ([None], [1.0], None),
    ],
)
def test_ratio(module, value, reference, expected):
    assert module("figures").ratio(value, reference) == expected


def test_a_table_is_markdown_with_even_columns(module):
    assert module("figures").table(["", "s"], [["a", "1.00"], ["long", "10.0"]]).splitlines() == [
        "|      |    s |",
        "| ---- | ---- |",
        "| a    | 1.00 |",
        "| long | 10.0 |",
    ]


def test_phases_add_up_to_the_first_result(module):
    found = {
        "submitted": 100.0,
        "asked": 99.5,
        "workers": 108.0,
        "result": 108.5,
        "events": [
            {"event": "phase", "phase": "stage", "time": 101.0},
            {"event": "staged", "seconds": 2.0},
            {"event": "phase", "phase": "launch", "time": 104.0},
            {"event": "phase", "phase": "ready", "time": 107.5},
        ],
    }
    figures = module("boot_bench").figures(found)
    assert figures == {
        "workers_s": 8.0,
        "result_s": 8.5,
        "submit_s": 0.5,
        "stager_s": 2.0,
        "phase_queue_s": 1.0,
        "phase_stage_s": 3.0,
        "phase_workers_s": 3.5,
        "phase_connect_s": 0.5,
        "phase_result_s": 0.5,
    }


def parts(model):
    return replace(
        model.Parts(),
        archive_bytes=1e9,
        unpack_s=2.0,
        boot_requests=1000,
        agent_requests=100,
        import_requests=1000,
        srun_s=1.0,
        mpirun_s=1.0,
        mpirun_per_doubling_s=0.5,
        import_s=3.0,
        workers_per_s=10.0,
        workers_per_node=1,
        fs_bytes_per_s=1e9,
        fs_requests_per_s=1000,
        link_bytes_per_s=1e9,
    )


@pytest.mark.parametrize(
    ("transport", "nodes", "expected"),
    [
        # One server sends eight archives, one after another.
        ("direct", 8, {"agents": 2.8, "stage": 8.0, "launch": 2.5, "import": 3.0, "connect": 0.8}),
        ("direct", 1, {"agents": 2.1, "stage": 2.0, "launch": 1.0, "import": 3.0, "connect": 0.1}),
        ("no staging", 8, {"agents": 0.0, "stage": 0.0, "launch": 2.5, "import": 11.0, "connect": 0.8}),
    ],
)
def test_start_on_many_nodes(module, transport, nodes, expected):
    model = module("model")
    assert model.start_s(nodes, transport, parts(model)) == pytest.approx(expected)


def test_a_tree_reads_the_archive_once(module):
    model = module("model")
    thousand = replace(parts(model), fs_requests_per_s=100_000)
    direct, tree, sbcast = (
        model.start_s(1000, how, thousand)["stage"] for how in ("direct", "tree", "sbcast")
    )
    assert direct == 1000
    assert tree == pytest.approx(4.0 + 9 * 2**20 / 250e6)
    assert sbcast == pytest.approx(52, abs=1)


def test_the_model_takes_what_was_measured(module):
    model = module("model")
    boot = [
        {
            "shared_fs": "sshfs",
            "nodes": 2,
            "runs": {"unstaged": [{"fs_requests": 40}], "mpiboot, warm": [{"fs_requests": 4000}]},
            "stages": [{"archive_bytes": 5}],
        }
    ]
    parts = replace(model.Parts(), agent_requests=950)
    found = model.measured(boot, [{"count": 500, "connected_s": 10.0}], parts)
    assert found == replace(
        parts, import_requests=20, boot_requests=2100, archive_bytes=5, workers_per_s=50.0
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "target", "factor", "is_met"),
    [
        (2.0, 13.0, 6, 6.5, True),
        (2.0, 11.0, 6, 5.5, False),
        (120.0, None, 300, None, True),  # no contender: the target is the largest value
        (301.0, None, 300, None, False),
    ],
)
def test_a_row_is_met_by_its_factor_or_its_value(module, ours, theirs, target, factor, is_met):
    row = module("envpack_runs").Row("what", "against", "s", ours, theirs, target)
    assert (row.factor, row.is_met) == (factor, is_met)


def test_the_envpack_part_loads(module):
    assert callable(module("envpack_bench").main)
