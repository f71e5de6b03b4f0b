"""Nodes of two generations: the fast network's interface has another name on one of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slurmcluster import Minicluster
from user import User

pytestmark = pytest.mark.cluster

SMALL = ("--no-stage", "--nodes=2", "--workers-per-node=1", "--cpus-per-worker=1")
COMPUTE = """
import sys, mpiboot
with mpiboot.connect(sys.argv[1], timeout=60) as client:
    print(sorted(worker.rpartition("://")[2].rpartition(":")[0] for worker in client.scheduler_info()["workers"]))
"""


@pytest.fixture
def renamed(minicluster: Minicluster) -> Iterator[None]:
    def rename(before: str, after: str) -> None:
        down = f"ip link set {before} down; ip link set {before} name {after}; ip link set {after} up"
        minicluster.node(2, ["sh", "-ec", down], user="root")

    rename("ib0", "ib9")
    yield
    rename("ib9", "ib0")


@pytest.mark.usefixtures("renamed")
@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
def test_a_network_in_the_place_of_an_interface(alice: User, mpich_env, mpi: str) -> None:
    env = {"openmpi": alice.cluster.env, "mpich": mpich_env}[mpi]
    job_id = alice.submits(*SMALL, "--interface=10.78.0.0/24", f"--env={env}")
    try:
        assert (
            alice.types(f"{env}/bin/python", "-c", COMPUTE, job_id).stdout == "['10.78.0.1', '10.78.0.2']\n"
        )
        assert "node1, node2, over 10.78.0.0/24\n" in alice.types("mpiboot", "connect", job_id).stderr
    finally:
        alice.stops(job_id)
    refused = alice.submits(*SMALL, "--interface=ib0")
    failed = alice.types("mpiboot", "connect", refused, check=False)
    assert failed.returncode == 1
    said = "--interface ib0: node2: there is no such interface (eth0, ib9 can be used). Name one that all nodes have:"
    assert f"{said} --interface eth0" in failed.stderr
