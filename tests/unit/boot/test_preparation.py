from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mpiboot.batch.allocation import Allocation, Node, system
from mpiboot.batch.sizing import GIB, NodeWorkers
from mpiboot.boot import preparation
from mpiboot.boot.context import Network, Staged
from mpiboot.config import Config
from mpiboot.errors import UsageError
from mpiboot.protocol.channel_messages import NodeReport
from mpiboot.protocol.job_directory import JobDirectory
from mpiboot.protocol.secrets import check_rank_secrets

IN_PLACE = Staged(Path("/env"), {})


def context(*nodes, batch_system="slurm", **options):
    return SimpleNamespace(
        config=Config(**options),
        allocation=Allocation(batch_system, "7", "key", nodes),
        system=system(batch_system),
    )


def report(memory_bytes=20 * GIB, cpus=8, *, root_is_memory=False, **addresses):
    interfaces = {
        name: {
            "address": address,
            "network": f"{address.rpartition('.')[0]}.0/24",
            "kind": 1,
            "loopback": name == "lo",
            "speed_mbits": 1000,
        }
        for name, address in addresses.items()
    }
    return NodeReport(0, interfaces, memory_bytes, cpus, root_is_memory, has_stage=False, port=7)


def test_boot_finds_the_file_of_the_jobs_output(tmp_path):
    with (tmp_path / "out").open("w") as out, Path("/dev/null").open() as device:
        found = [preparation.output_file(file.fileno()) for file in (out, device)]
    assert found == [str(tmp_path / "out"), None]
    assert preparation.output_file(-1) is None


def test_each_node_is_sized_by_its_own_limit_else_by_the_share_of_its_host():
    job = context(Node("n1", 8, 10 * GIB, 2), Node("n2", 4, None, 2), Node("n3", 1, None, 1))
    reports = {"n1": report(), "n2": report(40 * GIB), "n3": report(10 * GIB, 10)}
    assert preparation.size(job, reports, IN_PLACE).by_node == {
        "n1": NodeWorkers(2, 4, 9 * GIB // 2),
        "n2": NodeWorkers(2, 2, 9 * GIB),
        "n3": NodeWorkers(1, 1, GIB - GIB // 10),
    }


def test_the_users_memory_counts_where_the_batch_system_sets_no_limit():
    job = context(Node("n1", 1, 10 * GIB), Node("n2", 1), mem=GIB)
    sizing = preparation.size(job, {"n1": report(), "n2": report()}, IN_PLACE)
    assert [node.memory_limit_bytes for node in sizing.by_node.values()] == [9 * GIB, GIB - GIB // 10]


def test_a_staged_environment_counts_where_it_lies_in_memory():
    job = context(Node("n1", 1, 11 * GIB), Node("n2", 1, 11 * GIB))
    reports = {"n1": report(root_is_memory=True), "n2": report()}
    sizing = preparation.size(job, reports, Staged(Path("/s"), {"n1": GIB, "n2": GIB}))
    assert sizing.by_node["n1"].memory_limit_bytes == 9 * GIB
    assert sizing.by_node["n2"].memory_limit_bytes == 11 * GIB - 11 * GIB // 10


def test_more_workers_wanted_than_there_are():
    job = context(Node("n1", 8, None, 8), Node("n2", 1, None, 1), min_workers=10)
    with pytest.raises(UsageError, match="--min-workers 10: the job has 9 workers at most"):
        preparation.size(job, {"n1": report(), "n2": report(cpus=1)}, IN_PLACE)


def test_the_network_of_several_hosts_and_of_one():
    reports = {"n1": report(lo="127.0.0.1", ib0="10.0.0.1"), "n2": report(lo="127.0.0.1", ib0="10.0.0.2")}
    job = context(Node("n1", 1), Node("n2", 1))
    told = []
    agents = SimpleNamespace(introduce=told.append)
    network = Network(
        "ib0", {"10.0.0.1": "n1", "10.0.0.2": "n2"}, {"ib0": "10.0.0.1"}, {"n1": "ib0", "n2": "ib0"}
    )
    assert preparation.choose_network(job, agents, reports) == network
    assert told.pop() == {"n1": ["10.0.0.1", 7], "n2": ["10.0.0.2", 7]}
    local = context(Node("n1", 1), batch_system="local")
    assert preparation.choose_network(local, agents, {"n1": reports["n1"]}) == Network(
        "lo", {"127.0.0.1": "n1"}, {"lo": "127.0.0.1", "ib0": "10.0.0.1"}, {"n1": "lo"}
    )


def test_each_node_uses_its_own_name_of_the_interface():
    reports = {"n1": report(ib0="10.0.0.1"), "n2": report(ib1="10.0.0.2")}
    agents = SimpleNamespace(introduce=lambda addresses: None)
    network = preparation.choose_network(context(Node("n1", 1), Node("n2", 1)), agents, reports)
    assert network == Network(
        "10.0.0.0/24",
        {"10.0.0.1": "n1", "10.0.0.2": "n2"},
        {"10.0.0.0/24": "10.0.0.1"},
        {"n1": "ib0", "n2": "ib1"},
    )
    assert (network.devices, network.for_mpi) == (["ib0", "ib1"], "10.0.0.0/24")
    alias = Network("ib0:1", {}, {}, {"n1": "ib0:1", "n2": "ib0:1"})
    assert (alias.devices, alias.for_mpi) == (["ib0"], "ib0")


def test_the_login_node_s_networks_and_what_nodes_lack_decide():
    reports = {f"n{k}": report(ib0=f"10.0.0.{k}", ib1=f"10.1.0.{k}") for k in (1, 2)}
    job = context(Node("n1", 1), Node("n2", 1), client_networks=("10.1.0.0/16",))
    agents = SimpleNamespace(introduce=lambda addresses: None)
    network = preparation.choose_network(job, agents, reports)
    assert (network.interface, network.addresses) == ("ib1", {"ib1": "10.1.0.1", "ib0": "10.0.0.1"})
    reports["n2"].interfaces.pop("ib0")
    reports["n2"].unusable_interfaces["ib0"] = "it is down"
    with pytest.raises(
        UsageError, match=r"--interface ib0: n2: it is down \(ib1 can be used\)\. Name one that"
    ):
        preparation.choose_network(context(*job.allocation.nodes, interface="ib0"), agents, reports)


def test_the_kernels_limits_count_where_they_are_less_than_the_batch_systems(caplog):
    caplog.set_level("INFO")
    job = context(Node("n1", 8, 10 * GIB), Node("n2", 8, 10 * GIB))
    reports = {"n1": report(), "n2": replace(report(), allowed_cpus=4, memory_limit_bytes=5 * GIB)}
    assert preparation.size(job, reports, IN_PLACE).by_node == {
        "n1": NodeWorkers(2, 4, 9 * GIB // 2),
        "n2": NodeWorkers(1, 4, 5 * GIB - GIB // 2),
    }
    assert [line.partition(":")[0] for line in caplog.messages] == ["n1", "n2"]


def test_secrets_are_as_small_for_two_thousand_nodes(tmp_path):
    """Each connection sends a certificate, and a rank refuses secrets above 64 KiB."""
    sizes = []
    for n_nodes in (2, 2000):
        directory = JobDirectory.create(tmp_path, f"slurm-c-{n_nodes}")
        nodes = [Node(f"node-{k:04}.cluster.example.org", 1) for k in range(n_nodes)]
        job = SimpleNamespace(
            config=Config(), allocation=Allocation("slurm", "7", "k", tuple(nodes)), directory=directory
        )
        preparation.make_secrets(job)
        check_rank_secrets(directory.path)
        sizes.append({path.name: path.stat().st_size for path in directory.tls.iterdir()})
    assert sizes[0].keys() == sizes[1].keys()
    assert max(sizes[1].values()) < 2048
    assert all(abs(sizes[0][name] - size) < 16 for name, size in sizes[1].items())
