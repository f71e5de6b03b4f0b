"""The environment of the cluster's user: where users have theirs, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurmcluster import Minicluster

pytestmark = pytest.mark.cluster

SHOW = "import sys, os, distributed as d; print(sys.prefix, sys.executable, d.__name__, os.stat(sys.prefix).st_uid)"


def test_it_works_on_every_host(minicluster: Minicluster) -> None:
    argv = [str(minicluster.env / "bin/python"), "-c", SHOW]
    expected = "/home/alice/env /home/alice/env/bin/python distributed 61001\n"
    assert minicluster.login(argv).stdout == expected
    assert minicluster.login(["srun", "--nodes=3", *argv]).stdout == expected * 3


def test_it_lies_on_the_shared_file_system(minicluster: Minicluster) -> None:
    where = ["findmnt", "--noheadings", "--output=TARGET", "--target", str(minicluster.env)]
    assert minicluster.node(1, where).stdout.strip() == "/home"
    assert (minicluster.home / "env" / "bin" / "python").exists()
    # Its other path, the host's, leads nowhere on a node.
    assert minicluster.node(1, ["ls", str(minicluster.home)], user="root", check=False).returncode == 2


def test_a_stranger_cannot_read_it(minicluster: Minicluster) -> None:
    refused = minicluster.login(["ls", str(minicluster.env)], user="second", check=False)
    assert "Permission denied" in refused.stderr


def test_mpi_spans_the_nodes(minicluster: Minicluster) -> None:
    code = "from mpi4py import MPI; import socket; print(MPI.COMM_WORLD.size, socket.gethostname())"
    mpirun = f"env/bin/mpirun --bind-to none env/bin/python -c '{code}'"
    submit = ["sbatch", "--parsable", "--wait", "--nodes=2", "--ntasks-per-node=2", "--wrap", mpirun]
    job = minicluster.login(submit).stdout.strip()
    output = (minicluster.home / f"slurm-{job}.out").read_text()
    assert sorted(output.splitlines()) == ["4 node1", "4 node1", "4 node2", "4 node2"]


def test_mpich_spans_the_nodes(minicluster: Minicluster, mpich_env: Path) -> None:
    code = "from mpi4py import MPI; import socket; print(MPI.COMM_WORLD.size, socket.gethostname())"
    mpirun = f"{mpich_env}/bin/mpirun {mpich_env}/bin/python -c '{code}'"
    submit = ["sbatch", "--parsable", "--wait", "--nodes=2", "--ntasks-per-node=2", "--wrap", mpirun]
    job = minicluster.login(submit).stdout.strip()
    output = (minicluster.home / f"slurm-{job}.out").read_text()
    assert sorted(output.splitlines()) == ["4 node1", "4 node1", "4 node2", "4 node2"]
