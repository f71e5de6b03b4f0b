import pytest

from mpiboot.boot import staging
from mpiboot.errors import UsageError

MIB = 1024**2


@pytest.mark.parametrize(
    ("asked", "n_nodes", "n_lacking", "size_bytes", "expected"),
    [
        ("auto", 2, 2, 300 * MIB, "direct"),
        ("auto", 100, 13, 300 * MIB, "direct"),
        ("auto", 100, 14, 300 * MIB, "mpi"),
        ("auto", 2, 2, 3000 * MIB, "mpi"),
        ("sbcast", 2, 1, MIB, "sbcast"),
        ("mpi", 2, 1, MIB, "mpi"),
        ("mpi", 2, 0, MIB, "direct"),
        ("mpi", 1, 1, MIB, "direct"),
    ],
)
def test_transport(asked, n_nodes, n_lacking, size_bytes, expected):
    assert staging.choose(asked, "slurm", n_nodes, n_lacking, size_bytes) == expected


def test_sbcast_is_of_slurm_alone():
    with pytest.raises(UsageError, match="--transport sbcast is Slurm's own; this job is of local"):
        staging.choose("sbcast", "local", 1, 1, MIB)
