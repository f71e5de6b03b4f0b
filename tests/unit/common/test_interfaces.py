import json
import subprocess
import sys

import pytest

from mpiboot.common.interfaces import device_of, interfaces, networks_here


def test_loopback_of_this_machine():
    assert interfaces()["lo"]["address"] == "127.0.0.1"
    assert interfaces()["lo"]["network"] == "127.0.0.0/8"
    assert interfaces()["lo"]["loopback"] is True


def test_the_device_of_an_alias():
    assert [device_of(name) for name in ("ib0", "ib0:1", "bond0.100")] == ["ib0", "ib0", "bond0.100"]


# Columns of proc_net_route(5); addresses are in the host's byte order.
ROUTES = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	FE004D0A	0003	0	0	100	00000000	0	0	0
eth0	00004D0A	00000000	0001	0	0	100	00FFFFFF	0	0	0
ib0	00004E0A	00000000	0001	0	0	0	0000FFFF	0	0	0
eth0	0000500A	FE004D0A	0003	0	0	0	00F0FFFF	0	0	0
eth1	0000FEA9	00000000	0001	0	0	0	0000FFFF	0	0	0
docker0	000011AC	00000000	0001	0	0	0	0000FFFF	0	0	0
eth0	0000510A	00000000	0200	0	0	0	0000FFFF	0	0	0
eth0	00004D0A	00000000	0001	0	0	200	00FFFFFF	0	0	0
"""


@pytest.mark.skipif(sys.byteorder == "big", reason="the routes were written on a little-endian host")
def test_the_networks_that_a_host_has_a_route_to():
    assert networks_here(ROUTES) == ["10.77.0.0/24", "10.78.0.0/16", "10.80.0.0/20"]
    assert networks_here("Iface\tDestination\n") == []


SET_UP = """
ip link set lo up
for pair in ib0 ib0.100 six bare; do
    ip link add $pair type veth peer name p-$pair; ip link set $pair up; ip link set p-$pair up
done
ip address add 10.1.0.1/24 dev ib0; ip address add 10.1.0.2/24 dev ib0 label ib0:1; ip address add 10.1.0.3/24 dev ib0
ip address add 10.2.0.1/16 dev ib0.100
ip address add fd00::1/64 dev six
ip link add nolink type veth peer name down; ip address add 10.4.0.1/24 dev nolink; ip link set nolink up
"""
SHOW = """
import json
from mpiboot.common.interfaces import interfaces, unusable_interfaces
shown = {name: each["address"] for name, each in interfaces('ib0:1').items()}
print(json.dumps([shown, unusable_interfaces()]))
"""


def test_all_kinds_of_interfaces():
    """In a network namespace of its own."""
    inside = ["unshare", "--net", "--map-root-user", "sh", "-ec", f'{SET_UP}\nexec "$0" -c "$1"']
    done = subprocess.run([*inside, sys.executable, SHOW], capture_output=True, text=True)
    if "unshare" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip(f"no network namespace: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        {"lo": "127.0.0.1", "ib0": "10.1.0.1", "ib0:1": "10.1.0.2", "ib0.100": "10.2.0.1"},
        {
            **dict.fromkeys(["bare", "p-bare", "p-ib0", "p-ib0.100", "p-six"], "it has no address"),
            "down": "it is down",
            "nolink": "it has no link",
            "six": "it has IPv6 addresses alone, and Dask needs IPv4",
        },
    ]
