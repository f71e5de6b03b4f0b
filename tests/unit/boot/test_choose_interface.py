import pytest

from mpiboot.boot.choose_interface import choose_interface, common_interfaces
from mpiboot.common.interfaces import INFINIBAND
from mpiboot.errors import UsageError


def interface(address, kind=1, speed=1000, loopback=False):
    network = f"{address.rpartition('.')[0]}.0/24"
    return {"address": address, "network": network, "kind": kind, "loopback": loopback, "speed_mbits": speed}


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
    with pytest.raises(UsageError, match=r"own on every node \(n1 and 1 more: lo\)"):
        choose_interface("auto", {"n1": LO, "n2": LO})


def test_a_named_interface_that_nodes_lack():
    found = nodes(eth0={}, ib0={})
    found |= {
        "n3": found["n1"] | {"eth0": interface("10.0.0.3")},
        "n4": found["n1"] | {"eth0": interface("10.0.0.4")},
    }
    found = {node: dict(names) for node, names in found.items()}
    for node in ("n2", "n3", "n4"):
        del found[node]["ib0"]
    assert choose_interface("eth0", found) == "eth0"
    with pytest.raises(UsageError) as refusal:
        choose_interface("ib0", found, {"n2": {"ib0": "it is down"}, "n3": {}})
    assert str(refusal.value) == (
        "--interface ib0: n2: it is down (eth0 can be used); n3 and 1 more: there is no such interface (eth0 can be "
        "used). Name one that all nodes have: --interface eth0; or leave --interface out"
    )


def test_a_message_about_a_thousand_nodes_is_short():
    found = {f"n{k}": LO | {f"eth{k % 9}": interface(f"10.0.{k // 250}.{k % 250}")} for k in range(1000)}
    with pytest.raises(UsageError) as refusal:
        choose_interface("ib0", found)
    assert len(str(refusal.value)) < 400
    found = dict.fromkeys(found, LO)
    with pytest.raises(UsageError) as refusal:
        choose_interface("auto", found)
    assert len(str(refusal.value)) < 400


FAST, SLOW = {"speed": 100_000}, {"speed": 1000}
IB = {"kind": INFINIBAND}


@pytest.mark.parametrize(
    ("found", "client_networks", "expected"),
    [
        (nodes(eth0=FAST, ib0=IB), [], "ib0"),
        (nodes(eth0=FAST, ib0=IB), ["10.0.0.0/24"], "eth0"),
        (nodes(eth0=FAST, ib0=IB), ["10.0.0.0/24", "10.0.1.0/24"], "ib0"),
        (nodes(eth0=FAST, ib0=IB), ["192.168.0.0/16"], "ib0"),
        (nodes(eth0=SLOW, ib0=IB), ["10.0.0.0/24"], "ib0"),  # much slower
        (nodes(eth0=SLOW, eth1={"speed": 2500}), ["10.0.0.0/24"], "eth0"),
        (nodes(eth0={"speed": -1}, eth1={"speed": -1}), ["10.0.1.0/24"], "eth1"),
        (nodes(eth0=SLOW, eth1=FAST, eth2={"speed": 10_000}), ["10.0.0.0/24", "10.0.2.0/24"], "eth2"),
    ],
)
def test_auto_prefers_what_the_login_node_reaches_unless_it_is_much_slower(found, client_networks, expected):
    assert choose_interface("auto", found, client_networks=client_networks) == expected


def test_what_is_no_network():
    with pytest.raises(
        UsageError, match="--client-networks: 'ib0' does not appear to be an IPv4 or IPv6 network"
    ):
        choose_interface("auto", nodes(eth0=FAST), client_networks=["ib0"])


INTERNAL = ("docker0", "virbr0", "br-0123456789ab", "cni0", "tun0", "wg0", "tailscale0", "usb0", "idrac")


@pytest.mark.parametrize("name", INTERNAL)
def test_containers_and_tunnels_come_last(name):
    found = nodes(**{"eth0": SLOW, name: FAST})
    assert choose_interface("auto", found) == "eth0"
    assert choose_interface("auto", {"n1": found["n1"]}) == "eth0"
    assert choose_interface(name, found) == name
    del found["n1"]["eth0"]
    assert choose_interface("auto", found) == name


def test_link_local_addresses_are_not_chosen():
    found = {
        f"n{k}": LO | {"bmc": interface(f"169.254.3.{k}", speed=100_000), "eth0": interface(f"10.0.0.{k}")}
        for k in (1, 2)
    }
    assert choose_interface("auto", found) == "eth0"


def test_names_as_sites_have_them():
    """Fourteen interfaces, two of them in one network, an alias, a VLAN, a bond."""
    names = ["bond0", "bond0.100", "ib0", "ib0:1", *(f"eth{k}" for k in range(10))]
    found = {
        f"n{node}": LO
        | {
            name: interface(f"10.0.{0 if name == 'ib0:1' else at}.{node + 10 * at}", speed=25_000)
            for at, name in enumerate(names)
        }
        for node in (1, 2)
    }
    assert common_interfaces(found) == sorted(names)
    assert choose_interface("auto", found) == "bond0"
    for name in names:
        assert choose_interface(name, found) == name


def test_nodes_whose_interfaces_have_other_names():
    """Two generations of nodes: the names differ, the networks do not."""
    found = {
        "n1": LO | {"eth0": interface("10.0.0.1"), "ib0": interface("10.1.0.1", INFINIBAND)},
        "n2": LO | {"ens3": interface("10.0.0.2"), "ib1": interface("10.1.0.2", INFINIBAND)},
    }
    assert choose_interface("auto", found) == "10.1.0.0/24"
    assert choose_interface("10.0.0.0/24", found) == "10.0.0.0/24"
    with pytest.raises(UsageError) as refusal:
        choose_interface("ib0", found)
    assert str(refusal.value) == (
        "--interface ib0: n2: there is no such interface (ens3, ib1 can be used). Name one that all nodes have: "
        "--interface 10.1.0.0/24; or leave --interface out"
    )
    with pytest.raises(
        UsageError, match=r"--interface 10\.9\.0\.0/24: n1: there is no interface in it \(eth0, ib0 can"
    ):
        choose_interface("10.9.0.0/24", found)
    with pytest.raises(
        UsageError, match=r"--interface 10\.1\.0\.1/24: 10\.1\.0\.1/24 has host bits set\. Write a"
    ):
        choose_interface("10.1.0.1/24", found)
    found["n2"]["eth0"] = interface("10.2.0.2")
    assert choose_interface("auto", found) == "eth0"  # networks may be routed
