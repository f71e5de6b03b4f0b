import pytest

from mpiboot.boot import staging
from mpiboot.errors import UsageError

MIB = 1024**2


@pytest.mark.parametrize(
    ("asked", "n_nodes", "n_lacking", "size_bytes", "expected"),
    [
        ("auto", 2, 2, 300 * MIB, "direct"),
        ("auto", 100, 13, 300 * MIB, "direct"),
        ("auto", 100, 14, 300 * MIB, "tree"),
        ("auto", 2, 2, 3000 * MIB, "tree"),
        ("auto", 100, 1, 9000 * MIB, "direct"),
        ("sbcast", 2, 1, MIB, "sbcast"),
        ("tree", 2, 1, MIB, "tree"),
        ("tree", 2, 0, MIB, "direct"),
        ("tree", 1, 1, MIB, "direct"),
    ],
)
def test_transport(asked, n_nodes, n_lacking, size_bytes, expected):
    assert staging.choose_transport(asked, "slurm", n_nodes, n_lacking, size_bytes) == expected


def test_another_batch_systems_transport_is_refused():
    with pytest.raises(
        UsageError, match=r"--transport sbcast: a job of this machine cannot use it\. Use --transport"
    ):
        staging.choose_transport("sbcast", "local", 1, 1, MIB)


def test_a_batch_systems_own_transport():
    assert staging.choose_transport("sbcast", "slurm", 2, 2, MIB) == "sbcast"
