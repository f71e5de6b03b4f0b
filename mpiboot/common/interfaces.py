"""Network interfaces of a node, and the choice of one that all nodes have. Standard library only."""

import fcntl
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from mpiboot.errors import UsageError

# linux/sockios.h, linux/if.h, linux/if_arp.h. Asked by ioctl, since /sys may show another network namespace.
_SIOCGIFFLAGS, _SIOCGIFADDR, _SIOCGIFHWADDR = 0x8913, 0x8915, 0x8927
_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING = 0x1, 0x8, 0x40
INFINIBAND = 32


class Interface(TypedDict):
    """`kind` is the kernel's ARPHRD number (32: InfiniBand); `speed_mbits` is -1 where the driver does not say."""

    address: str
    kind: int
    loopback: bool
    speed_mbits: int


def interfaces() -> dict[str, Interface]:
    """This node's interfaces that are up and have an IPv4 address."""
    found: dict[str, Interface] = {}
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
                found[name] = Interface(
                    address=address, kind=kind, loopback=bool(flags & _IFF_LOOPBACK), speed_mbits=_speed(name)
                )
    return found


def _speed(name: str) -> int:
    try:
        return int(Path(f"/sys/class/net/{name}/speed").read_text())
    except (OSError, ValueError):
        return -1


def choose(wanted: str, of_nodes: Mapping[str, Mapping[str, Interface]]) -> str:
    """The interface that all nodes will use.

    `auto` takes, of those that every node has up, with an IPv4 address of its own, the InfiniBand devices first, then
    the fastest, then the first by name. A single node with nothing else gets its loopback.

    Parameters
    ----------
    wanted
        A name, or `auto`.
    of_nodes
        Each node's `interfaces()`.

    Raises
    ------
    UsageError
        A node lacks it; the message names the nodes and the interfaces they have.
    """
    if wanted != "auto":
        lacking = {node: found for node, found in of_nodes.items() if wanted not in found}
        if lacking:
            each = "; ".join(
                f"{node} has {', '.join(sorted(found)) or 'none'}" for node, found in lacking.items()
            )
            raise UsageError(
                f"--interface {wanted}: not up with an IPv4 address on {', '.join(lacking)}. {each}. "
                "Name one of these, or leave --interface out"
            )
        if len(of_nodes) > 1 and not _distinct(wanted, of_nodes):
            raise UsageError(
                f"--interface {wanted}: several nodes have the same address on it, so they cannot reach each other there"
            )
        return wanted
    first = next(iter(of_nodes.values()))
    common = [
        name
        for name in first
        if all(name in found and not found[name]["loopback"] for found in of_nodes.values())
        and _distinct(name, of_nodes)
    ]
    if not common:
        if len(of_nodes) == 1 and "lo" in first:
            return "lo"
        each = "; ".join(f"{node}: {', '.join(sorted(found)) or 'none'}" for node, found in of_nodes.items())
        raise UsageError(f"no interface is up with an IPv4 address of its own on every node ({each})")
    return min(
        common,
        key=lambda name: (
            not all(found[name]["kind"] == INFINIBAND for found in of_nodes.values()),
            -min(found[name]["speed_mbits"] for found in of_nodes.values()),
            name,
        ),
    )


def _distinct(name: str, of_nodes: Mapping[str, Mapping[str, Interface]]) -> bool:
    return len({found[name]["address"] for found in of_nodes.values()}) == len(of_nodes)
