import pytest

from mpiboot.common.names import show_names


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["node1"], "node1"),
        (["node1", "node2", "node3", "gpu7"], "node[1-3],gpu7"),
        (["n001", "n002", "n003", "n007"], "n[001-003,007]"),
        (["n8", "n9", "n10", "n11"], "n[8-9],n[10-11]"),
        (["a-1-2", "a-1-3", "login", "b"], "a-1-[2-3],login,b"),
        (["cn1.hpc", "cn2.hpc"], "cn1.hpc,cn2.hpc"),
        ([], ""),
    ],
)
def test_names_in_brief(names, shown):
    assert show_names(names) == shown
