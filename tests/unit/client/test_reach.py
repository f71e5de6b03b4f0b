import socket

import pytest
from standin import endpoint_of

from mpiboot.client import reach


@pytest.fixture
def published(cluster):
    """An endpoint whose dashboard accepts connections at 127.0.0.2 alone."""
    with socket.create_server(("127.0.0.2", 0)) as listening:
        port = listening.getsockname()[1]
        yield endpoint_of(
            cluster,
            dashboard=f"http://127.0.0.3:{port}/status",
            interface="ib0",
            addresses={"ib0": "127.0.0.3", "eth0": "127.0.0.2", "eth1": "127.0.0.4"},
        )


def test_another_interface_is_named(published):
    assert reach.reached_interfaces(published) == ["eth0"]
    assert reach.no_route_remedy(published, "7") == (
        "This host reaches node1 on eth0 (127.0.0.2), not on ib0: mpiboot stop 7; then mpiboot submit --interface eth0"
    )
    port = published.dashboard.rpartition(":")[2]
    assert reach.reached_dashboard(published) == f"http://127.0.0.2:{port}"


def test_the_interface_is_reached_so_the_fault_is_elsewhere(published):
    link = published.dashboard.replace("127.0.0.3", "127.0.0.2")
    published = published._replace(
        interface="eth0", dashboard=link, address=link.replace("http", "tls").removesuffix("/status")
    )
    assert reach.no_route_remedy(published, "7") is None
    assert reach.reached_dashboard(published) == link


def test_the_interface_is_reached_but_not_the_scheduler_s_port(published):
    published = published._replace(interface="eth0", address="tls://127.0.0.2:1")
    assert reach.no_route_remedy(published, "7") == (
        "This host reaches node1 on eth0, but not its port 1; a firewall may be between them: mpiboot stop 7; then "
        "mpiboot submit --scheduler-port P, with a port that it leaves open"
    )


def test_nothing_is_reached(published):
    published = published._replace(addresses={"ib0": "127.0.0.3", "eth1": "127.0.0.4"})
    assert reach.no_route_remedy(published, "7") == (
        "This host reaches node1 on no interface (ib0 127.0.0.3, eth1 127.0.0.4). See whether the node is up: mpiboot "
        "status 7. If it is, name ports that a firewall leaves open (mpiboot submit --worker-port LOW:HIGH), connect "
        "from a host that has a route, or work within the job: mpiboot submit [options] -- COMMAND"
    )
    assert reach.reached_dashboard(published) == published.dashboard
