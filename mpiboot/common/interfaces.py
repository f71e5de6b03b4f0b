"""Network interfaces of a node, and the networks that it has a route to.

Agents and `doctor` list the interfaces, boot chooses one (`boot.choose_interface`), and submit lists the networks. It
imports the standard library alone.
"""

import fcntl
import re
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

# linux/sockios.h, linux/if.h, linux/if_arp.h. The facts come from ioctl, since /sys may show another network namespace.
_SIOCGIFFLAGS, _SIOCGIFADDR, _SIOCGIFNETMASK, _SIOCGIFHWADDR = 0x8913, 0x8915, 0x891B, 0x8927
_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING = 0x1, 0x8, 0x40
INFINIBAND = 32
# Names that container and virtual machine programs, VPNs and management controllers give to their interfaces.
INTERNAL = re.compile(
    r"docker|virbr|veth|cni|flannel|podman|lxcbr|lxdbr|vmnet|vboxnet|cali|kube|tailscale|wg\d|tun\d|tap\d|ppp\d|usb\d|idrac"
    r"|br-[0-9a-f]{12}"
)
LINK_LOCAL = "169.254."
# linux/route.h
_RTF_UP, _RTF_REJECT = 0x1, 0x200
# A job script's arguments hold the networks.
_NETWORKS_MAX = 20


class Interface(TypedDict):
    """One network interface.

    Attributes
    ----------
    address : str
        Its IPv4 address.
    network : str
        The network of that address, such as `10.0.0.0/24`.
    kind : int
        The kernel's ARPHRD number (linux/if_arp.h); 32 is InfiniBand.
    loopback : bool
        Whether it reaches this host alone.
    speed_mbits : int
        Its speed in Mbit/s; -1 if the driver does not report it.
    """

    address: str
    network: str
    kind: int
    loopback: bool
    speed_mbits: int


def interfaces(alias: str = "") -> dict[str, Interface]:
    """Return the interfaces of this node that are up and have an IPv4 address, by name.

    Parameters
    ----------
    alias : str, optional
        A further name, such as `ib0:1`; no list of the kernel's has those (netdevice(7)).
    """
    result: dict[str, Interface] = {}
    names = [name for _, name in socket.if_nameindex()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name in [*names, *([alias] if ":" in alias else [])]:
            try:
                flags = _flags(probe, name)
                address, mask = (
                    int.from_bytes(_ask(probe, question, name)[20:24], "big")
                    for question in (_SIOCGIFADDR, _SIOCGIFNETMASK)
                )
                kind = struct.unpack("H", _ask(probe, _SIOCGIFHWADDR, name)[16:18])[0]
            except OSError:
                continue  # no IPv4 address
            if flags & _IFF_UP and flags & _IFF_RUNNING:  # a port without a cable is up too
                result[name] = Interface(
                    address=_dotted(address),
                    network=f"{_dotted(address & mask)}/{mask.bit_count()}",
                    kind=kind,
                    loopback=bool(flags & _IFF_LOOPBACK),
                    speed_mbits=_speed(device_of(name)),
                )
    return result


def unusable_interfaces() -> dict[str, str]:
    """Return why the other interfaces of this node cannot be used, by name."""
    usable, result = interfaces(), {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            if name not in usable:
                try:
                    flags = _flags(probe, name)
                except OSError:
                    continue
                result[name] = _why_unusable(name, flags)
    return result


def _why_unusable(name: str, flags: int) -> str:
    if not flags & _IFF_UP:
        return "it is down"
    if not flags & _IFF_RUNNING:
        return "it has no link"
    return (
        "it has IPv6 addresses alone, and Dask needs IPv4"
        if name in _names_with_ipv6()
        else "it has no address"
    )


def _dotted(address: int) -> str:
    return socket.inet_ntoa(address.to_bytes(4, "big"))


def by_network(of_node: Mapping[str, Interface]) -> dict[str, Interface]:
    """Return a node's interfaces by their networks; of several in one network, the first."""
    result: dict[str, Interface] = {}
    for interface in of_node.values():
        result.setdefault(interface["network"], interface)
    return result


def device_of(name: str) -> str:
    """Return the device of an interface: `ib0` for its alias `ib0:1`."""
    return name.partition(":")[0]


def _ask(probe: socket.socket, question: int, name: str) -> bytes:
    return fcntl.ioctl(probe, question, struct.pack("256s", name.encode()[:15]))


def _flags(probe: socket.socket, name: str) -> int:
    flags: int = struct.unpack("H", _ask(probe, _SIOCGIFFLAGS, name)[16:18])[0]
    return flags


def _names_with_ipv6() -> set[str]:
    """Return the interfaces with an IPv6 address that other networks know: not one of the link alone (scope 20)."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:  # the kernel has no IPv6
        return set()
    return {line.split()[5] for line in lines if line.split()[3] != "20"}


def _speed(name: str) -> int:
    """Return the speed of an interface in Mbit/s; -1 if the driver does not report it."""
    try:
        return int(Path(f"/sys/class/net/{name}/speed").read_text())
    except (OSError, ValueError):
        return -1


def networks_here(routes: str | None = None) -> list[str]:
    """Return the IPv4 networks to which this host has a route of their own: not the default route, nor its loopback.

    Parameters
    ----------
    routes : str, optional
        The text of /proc/net/route (proc(5)); None: read it.
    """
    if routes is None:
        try:
            routes = Path("/proc/net/route").read_text()
        except OSError:
            return []
    networks = []
    for line in routes.splitlines()[1:]:
        name, destination, _, flags, _, _, _, mask, *_ = line.split()
        if not int(flags, 16) & _RTF_UP or int(flags, 16) & _RTF_REJECT or not int(mask, 16):
            continue
        network = socket.inet_ntoa(int(destination, 16).to_bytes(4, sys.byteorder))
        if not network.startswith(LINK_LOCAL) and not INTERNAL.match(name):
            networks.append(f"{network}/{int(mask, 16).bit_count()}")
    return list(dict.fromkeys(networks))[:_NETWORKS_MAX]
