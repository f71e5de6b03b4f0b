"""Cluster tests of one group share a process: of one file, or of one site."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "cluster" / "conftest.py"
spec = importlib.util.spec_from_file_location("cluster_conftest", CONFTEST)
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/cluster/test_sites.py::test_stop[strict]", "strict"),
        ("tests/cluster/test_cables.py::test_a_cut[cut off]", "test_cables"),
        ("tests/cluster/test_boot.py::test_bad_input[--env-a@b: test_sites.py::x]", "test_boot"),
    ],
)
def test_groups(nodeid, group):
    assert conftest.group_of(nodeid) == group


def test_order():
    """Heavy groups begin first, with others between them; tests of other folders stay in front."""
    groups = ["test_a", "test_b", "test_cables", "test_c", "test_soak"]
    items = [item(CONFTEST.parent, group) for group in groups for _ in range(2)]
    elsewhere = item(CONFTEST.parents[1] / "unit", "test_cables")
    conftest.pytest_collection_modifyitems(items := [*items, elsewhere])
    order = [each.path.stem for each in items]
    assert items[0] is elsewhere
    assert order[1::2] == order[2::2] == ["test_cables", "test_a", "test_soak", "test_b", "test_c"]


def item(folder, group):
    return SimpleNamespace(path=folder / f"{group}.py", nodeid=f"tests/cluster/{group}.py::test_it")
