import pytest

from mpiboot.common.interfaces import INFINIBAND, choose_interface, interfaces
from mpiboot.errors import UsageError


def interface(address, kind=1, speed=1000, loopback=False):
    return {"address": address, "kind": kind, "loopback": loopback, "speed_mbits": speed}


LO = {"lo": interface("127.0.0.1", loopback=True)}


def nodes(**of_each):
    """Two nodes with the same interfaces, addresses ending in 1 and 2."""
    return {
        f"n{number}": LO
        | {
            name: interface(f"10.0.{at}.{number}", **settings)
            for at, (name, settings) in enumerate(of_each.items())
        }
        for number in (1, 2)
    }


def test_loopback_of_this_machine():
    assert interfaces()["lo"]["address"] == "127.0.0.1"
    assert interfaces()["lo"]["loopback"] is True


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (nodes(eth0={"speed": 100_000}, hsn9={"kind": INFINIBAND}), "hsn9"),
        (nodes(eth0={}, eth1={"speed": 25_000}), "eth1"),
        (nodes(ens3={"speed": -1}, enp1={"speed": -1}), "enp1"),
    ],
)
def test_auto(found, expected):
    assert choose_interface("auto", found) == expected


def test_auto_takes_only_what_all_nodes_have():
    found = nodes(eth0={}, ib0={"kind": INFINIBAND})
    del found["n2"]["ib0"]
    assert choose_interface("auto", found) == "eth0"


def test_auto_passes_over_a_bridge_with_the_same_address_everywhere():
    found = nodes(eth0={})
    for node in found.values():
        node["docker0"] = interface("172.17.0.1", speed=40_000)
    assert choose_interface("auto", found) == "eth0"
    with pytest.raises(UsageError, match="several nodes have the same address"):
        choose_interface("docker0", found)


def test_loopback_is_the_last_resort_of_a_single_node():
    assert choose_interface("auto", {"n1": LO}) == "lo"
    with pytest.raises(UsageError, match=r"own on every node \(n1: lo; n2: lo\)"):
        choose_interface("auto", {"n1": LO, "n2": LO})


def test_a_named_interface_that_a_node_lacks():
    found = nodes(eth0={}, ib0={})
    del found["n2"]["ib0"]
    assert choose_interface("eth0", found) == "eth0"
    with pytest.raises(UsageError, match=r"--interface ib0: not up .* on n2\. n2 has eth0, lo\."):
        choose_interface("ib0", found)
