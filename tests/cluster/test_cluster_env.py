"""alice's environment on the cluster: in her home, on every host, closed to strangers; its MPI spans the nodes."""

from __future__ import annotations

import pytest
from slurmcluster import Minicluster
from user import User

pytestmark = pytest.mark.cluster

SHOW = "import sys, os, distributed as d; print(sys.prefix, sys.executable, d.__name__, os.stat(sys.prefix).st_uid)"
RANK = "from mpi4py import MPI; import socket; print(MPI.COMM_WORLD.size, socket.gethostname())"


def test_it_works_on_every_host(alice: User) -> None:
    expected = "/home/alice/env /home/alice/env/bin/python distributed 61001\n"
    assert alice.types("python", "-c", SHOW).stdout == expected
    assert alice.types("srun", "--nodes=3", "python", "-c", SHOW).stdout == expected * 3


def test_it_lies_on_the_shared_file_system(minicluster: Minicluster, alice: User) -> None:
    where = ["findmnt", "--noheadings", "--output=TARGET", "--target", minicluster.env]
    assert alice.types(*where, node=1).stdout.strip() == "/home"
    assert (alice.home / "env" / "bin" / "python").exists()
    # Its other path, the host's, leads nowhere on a node.
    assert minicluster.node(1, ["ls", str(alice.home)], user="root", check=False).returncode == 2


def test_a_stranger_cannot_read_it(minicluster: Minicluster, second: User) -> None:
    assert "Permission denied" in second.types("ls", minicluster.env, check=False).stderr


@pytest.mark.parametrize(("folder", "options"), [("env", "--bind-to none"), ("env-mpich", "")])
@pytest.mark.usefixtures("mpich_env")
def test_mpi_spans_the_nodes(alice: User, folder: str, options: str) -> None:
    mpirun = f"{folder}/bin/mpirun {options} {folder}/bin/python -c '{RANK}'"
    submit = ["sbatch", "--parsable", "--wait", "--nodes=2", "--ntasks-per-node=2", "--wrap", mpirun]
    job_id = alice.types(*submit).stdout.strip()
    output = alice.types("cat", f"slurm-{job_id}.out").stdout
    assert sorted(output.splitlines()) == ["4 node1", "4 node1", "4 node2", "4 node2"]
