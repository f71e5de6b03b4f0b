"""Network interfaces of a node, and the choice of one that all nodes have.

Agents and `doctor` list them, and boot chooses. It imports the errors.
"""

import fcntl
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from mpiboot.errors import UsageError

# linux/sockios.h, linux/if.h, linux/if_arp.h. The facts come from ioctl, since /sys may show another network namespace.
_SIOCGIFFLAGS, _SIOCGIFADDR, _SIOCGIFHWADDR = 0x8913, 0x8915, 0x8927
_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING = 0x1, 0x8, 0x40
INFINIBAND = 32


class Interface(TypedDict):
    """One network interface.

    Attributes
    ----------
    address : str
        Its IPv4 address.
    kind : int
        The kernel's ARPHRD number (linux/if_arp.h); 32 is InfiniBand.
    loopback : bool
        Whether it reaches this host alone.
    speed_mbits : int
        Its speed in Mbit/s; -1 if the driver does not report it.
    """

    address: str
    kind: int
    loopback: bool
    speed_mbits: int


def interfaces() -> dict[str, Interface]:
    """Return the interfaces of this node that are up and have an IPv4 address, by name."""
    result: dict[str, Interface] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                flags = struct.unpack("H", fcntl.ioctl(probe, _SIOCGIFFLAGS, request)[16:18])[0]
                address = socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24])
                kind = struct.unpack("H", fcntl.ioctl(probe, _SIOCGIFHWADDR, request)[16:18])[0]
            except OSError:
                continue  # no IPv4 address
            if flags & _IFF_UP and flags & _IFF_RUNNING:  # a port without a cable is up too
                result[name] = Interface(
                    address=address, kind=kind, loopback=bool(flags & _IFF_LOOPBACK), speed_mbits=_speed(name)
                )
    return result


def _speed(name: str) -> int:
    """Return the speed of an interface in Mbit/s; -1 if the driver does not report it."""
    try:
        return int(Path(f"/sys/class/net/{name}/speed").read_text())
    except (OSError, ValueError):
        return -1


def choose_interface(wanted: str, of_nodes: Mapping[str, Mapping[str, Interface]]) -> str:
    """Choose the interface that all nodes use.

    `auto` considers the interfaces that are up on every node with an IPv4 address of the node's own: InfiniBand first,
    then the fastest, then the first by name. A single node that has nothing else uses its loopback.

    Parameters
    ----------
    wanted : str
        The name of an interface, or `auto`.
    of_nodes : mapping of str to mapping
        The `interfaces()` of each node, by the node's name.

    Returns
    -------
    str
        The name of the interface.

    Raises
    ------
    UsageError
        A node lacks the interface; the message names the nodes and the interfaces that they have.
    """
    if wanted != "auto":
        nodes_without = {node: names for node, names in of_nodes.items() if wanted not in names}
        if nodes_without:
            existing = "; ".join(
                f"{node} has {', '.join(sorted(names)) or 'none'}" for node, names in nodes_without.items()
            )
            raise UsageError(
                f"--interface {wanted}: not up with an IPv4 address on {', '.join(nodes_without)}. {existing}",
                "Name one of these, or leave --interface out",
            )
        if len(of_nodes) > 1 and not _distinct(wanted, of_nodes):
            raise UsageError(
                f"--interface {wanted}: several nodes have the same address on it, so they cannot reach each other",
                "Name another one, or leave --interface out",
            )
        return wanted
    first = next(iter(of_nodes.values()))
    common = [
        name
        for name in first
        if all(name in node and not node[name]["loopback"] for node in of_nodes.values())
        and _distinct(name, of_nodes)
    ]
    if not common:
        if len(of_nodes) == 1 and "lo" in first:
            return "lo"
        existing = "; ".join(
            f"{node}: {', '.join(sorted(names)) or 'none'}" for node, names in of_nodes.items()
        )
        raise UsageError(
            f"no interface is up with an IPv4 address of its own on every node ({existing})",
            "Look at the nodes' network: ip -4 addr",
        )
    return min(common, key=lambda name: _rank(name, [node[name] for node in of_nodes.values()]))


def preferred_first(of_host: Mapping[str, Interface], wanted: str) -> list[str]:
    """Return the addresses at which other hosts may reach this one: the interface `wanted` first, then the fastest."""
    names = [name for name, interface in of_host.items() if not interface["loopback"]]
    names.sort(key=lambda name: (name != wanted, *_rank(name, [of_host[name]])))
    return list(dict.fromkeys(of_host[name]["address"] for name in names))


def _rank(name: str, interfaces: Sequence[Interface]) -> tuple[bool, int, str]:
    """Return the sort key of the interfaces of one name on several nodes: InfiniBand first, then the fastest."""
    infiniband = all(interface["kind"] == INFINIBAND for interface in interfaces)
    return not infiniband, -min(interface["speed_mbits"] for interface in interfaces), name


def _distinct(name: str, of_nodes: Mapping[str, Mapping[str, Interface]]) -> bool:
    """Whether all nodes have different addresses on that interface."""
    return len({node[name]["address"] for node in of_nodes.values()}) == len(of_nodes)
