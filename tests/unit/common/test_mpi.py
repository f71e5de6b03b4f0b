import pytest

from mpiboot.common.mpi import launcher_mpi, library_mpi
from mpiboot.errors import LaunchError


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to …", "openmpi"),
        ("HYDRA build details:\n    Version:   5.0.2", "mpich"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307", "intelmpi"),
    ],
)
def test_launcher(version, expected):
    assert launcher_mpi(version) == expected


def test_unknown_launcher():
    with pytest.raises(LaunchError, match=r"LAM 7\.0\.6.*which is neither"):
        launcher_mpi("LAM 7.0.6")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("Open MPI v5.0.11, package: Open MPI", "openmpi"),
        ("MPICH Version:      5.0.2", "mpich"),
        ("Intel(R) MPI Library 2021.9 for Linux* OS\n", "intelmpi"),
        ("RuntimeError: cannot load MPI library", None),
    ],
)
def test_library(version, expected):
    assert library_mpi(version) == expected
