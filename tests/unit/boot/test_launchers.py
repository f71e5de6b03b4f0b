from pathlib import Path

import pytest

from mpiboot.batch.allocation import Placement
from mpiboot.boot import launchers

PLACE = launchers.placement({"n1": 4, "n2": 4})
RANK = ["/s/bin/python", "-I", "-S", "/s/rank.py", "/home/a b/job"]
HOSTS = Path("/j/hosts")


def test_rank_0_shares_the_first_node():
    assert (PLACE.ranks_per_node, PLACE.world_size) == ((5, 4), 9)


def test_unequal_nodes_have_unequal_ranks():
    place = launchers.placement({"n1": 8, "n2": 8, "n3": 1})
    assert (place.nodes, place.ranks_per_node, place.world_size) == (("n1", "n2", "n3"), (9, 8, 1), 18)
    assert launchers.host_file("openmpi", place) == "n1 slots=9\nn2 slots=8\nn3 slots=1\n"


def test_openmpi():
    assert launchers.openmpi("/s/bin/mpirun", PLACE, HOSTS, "ib0", RANK) == [
        *("/s/bin/mpirun", "-n", "9", "--hostfile", "/j/hosts"),
        *("--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"),
        *("--runtime-options", "recoverable,continuous"),
        *("--mca", "btl_tcp_if_include", "ib0", "--prtemca", "prte_if_include", "ib0"),
        *RANK,
    ]


def test_openmpi_4():
    assert launchers.openmpi4("/m/mpirun", PLACE, HOSTS, "ib0", RANK) == [
        *("/m/mpirun", "-n", "9", "--hostfile", "/j/hosts"),
        *("--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none", "--enable-recovery", "--continuous"),
        *("--mca", "btl_tcp_if_include", "ib0", "--mca", "oob_tcp_if_include", "ib0"),
        *RANK,
    ]


def test_intelmpi():
    assert launchers.intelmpi("mpirun", PLACE, HOSTS, None, RANK) == [
        *("mpirun", "-n", "9", "-machinefile", "/j/hosts"),
        *("-genv", "I_MPI_FAULT_CONTINUE", "on", "-genv", "I_MPI_PIN", "off"),
        *RANK,
    ]


@pytest.mark.parametrize(
    ("mpi", "version", "expected"),
    [
        ("openmpi", "mpirun (Open MPI) 5.0.11", launchers.openmpi),
        ("openmpi", "mpirun (Open MPI) 4.1.6", launchers.openmpi4),
        ("openmpi", "Lmod 8.7\nmpirun (Open MPI) 4.1.6", launchers.openmpi4),
        ("openmpi", "prterun (PRRTE) 3.0.13", launchers.openmpi),
        ("mpich", "HYDRA build details:\n    Version:   3.4.1", launchers.hydra),
        ("intelmpi", "Intel(R) MPI Library for Linux* OS, Version 2021.9", launchers.intelmpi),
    ],
)
def test_builder(mpi, version, expected):
    assert launchers.builder(mpi, version) is expected


def test_hydra():
    assert launchers.hydra("mpiexec", PLACE, HOSTS, "ib0", RANK) == [
        *("mpiexec", "-n", "9", "-f", "/j/hosts", "-disable-auto-cleanup", "-bind-to", "none"),
        *("-iface", "ib0"),
        *RANK,
    ]


@pytest.mark.parametrize(
    ("mpi", "text"),
    [
        ("openmpi", "n1 slots=5\nn2 slots=4\n"),
        ("mpich", "n1:5\nn2:4\n"),
    ],
)
def test_host_file(mpi, text):
    assert launchers.host_file(mpi, PLACE) == text


def test_a_network_in_the_place_of_an_interface():
    """Open MPI takes it; Hydra takes names alone."""
    place = Placement(("n1", "n2"), (2, 1))
    command = {
        build.__name__: build("mpirun", place, Path("hosts"), "10.0.0.0/24", ["rank"])
        for build in (launchers.openmpi, launchers.openmpi4, launchers.hydra, launchers.intelmpi)
    }
    assert {name: words.count("10.0.0.0/24") for name, words in command.items()} == {
        "openmpi": 2,
        "openmpi4": 2,
        "hydra": 0,
        "intelmpi": 0,
    }
    assert "-iface" not in command["hydra"] + command["intelmpi"]
