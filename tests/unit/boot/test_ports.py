import socket
from types import SimpleNamespace

import pytest

from mpiboot.batch.sizing import NodeWorkers, Sizing
from mpiboot.boot import launch, ports
from mpiboot.boot.context import Network
from mpiboot.boot.ports import RankPorts
from mpiboot.config import Config
from mpiboot.errors import UsageError

TWO = Sizing({"n1": NodeWorkers(2, 1, 1), "n2": NodeWorkers(3, 1, 1)})


def test_any_port_unless_the_user_names_one():
    assert ports.choose_ports(Config(), TWO) == RankPorts(0, 0, {}, {})


def test_all_ports_lie_in_the_range(monkeypatch):
    monkeypatch.setattr(ports, "choose_free", lambda ports, count, but: list(ports)[-count:])
    assert ports.choose_ports(Config(worker_port="40000:40100"), TWO) == RankPorts(
        scheduler=40097,
        dashboard=40098,
        worker_options={"port": "40000:40019", "worker_port": "40020:40039"},
        variables={
            "PRTE_MCA_oob_tcp_dynamic_ipv4_ports": "40099,40100",
            "PRTE_MCA_oob_tcp_dynamic_ipv6_ports": "40099,40100",
            "OMPI_MCA_oob_tcp_dynamic_ipv4_ports": "40099,40100",
            "OMPI_MCA_btl_tcp_port_min_v4": "40060",
            "OMPI_MCA_btl_tcp_port_range_v4": "20",
            "OMPI_MCA_btl_tcp_port_min_v6": "40060",
            "OMPI_MCA_btl_tcp_port_range_v6": "20",
            "MPIR_CVAR_CH3_PORT_RANGE": "40060:40079",
            "UCX_TCP_PORT_RANGE": "40060-40079",
            "I_MPI_PORT_RANGE": "40060:40079",
            "FI_TCP_PORT_LOW_RANGE": "40060",
            "FI_TCP_PORT_HIGH_RANGE": "40079",
            "MPIBOOT_WORKER_PAGES": "40",
        },
    )


def test_a_node_with_too_many_workers_for_the_range():
    with pytest.raises(UsageError, match=r"has 30 ports; 6 worker\(s\) on n2 need 35"):
        ports.choose_ports(
            Config(worker_port="40000:40029"), Sizing({**TWO.by_node, "n2": NodeWorkers(6, 1, 1)})
        )


@pytest.mark.parametrize("option", ["scheduler_port", "dashboard_port"])
def test_a_named_port_that_is_taken(option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flag = "--" + option.replace("_", "-")
        with pytest.raises(UsageError, match=rf"^{flag} {port}: another program listens on it on \S+\. Name"):
            ports.choose_ports(Config(**{option: port}), TWO)
    assert getattr(ports.choose_ports(Config(**{option: port}), TWO), option.removesuffix("_port")) == port


def test_dask_mpi_s_arguments(tmp_path):
    context = SimpleNamespace(
        directory=SimpleNamespace(scheduler_file=tmp_path / "s"), config=Config(), job_folder=tmp_path
    )
    chosen = RankPorts(8786, 8787, {"port": "1:2", "worker_port": 3}, {})
    command = launch.rank_command(context, SimpleNamespace(prefix=tmp_path), Network("ib0", {}), chosen)
    at = command.index("--scheduler-port")
    assert command[at : at + 6] == [
        *("--scheduler-port", "8786", "--dashboard-address", ":8787"),
        *("--worker-options", '{"port": "1:2", "worker_port": 3}'),
    ]
