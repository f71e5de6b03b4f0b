"""Chooses the network interface that all nodes of a job use.

Only boot imports this module. It imports `common.interfaces` and the errors.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mpiboot.common.interfaces import INFINIBAND, INTERNAL, LINK_LOCAL, Interface, by_network
from mpiboot.errors import UsageError

# From this speed on, another interface that the login node reaches is not much worse than a faster one.
FAST_MBITS = 10_000
# How many groups of nodes with the same interfaces a message names.
_GROUPS_SHOWN = 3


def choose_interface(
    wanted: str,
    of_nodes: Mapping[str, Mapping[str, Interface]],
    unusable: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    client_networks: Sequence[str] = (),
) -> str:
    """Choose the interface that all nodes use.

    `auto` considers the interfaces that are up on every node with an IPv4 address of the node's own: InfiniBand first,
    then the fastest, then the first by name. If the login node does not reach the first node there, but does on another
    one, `auto` takes that, unless it is much slower. If the nodes have no interface of one name, `auto` chooses a network
    in the same way, and each node uses its interface there. A single node that has nothing else uses its loopback.

    Parameters
    ----------
    wanted : str
        The name of an interface, a network such as `10.0.0.0/24`, or `auto`.
    of_nodes : mapping of str to mapping
        The `interfaces()` of each node, by the node's name, the first node first.
    unusable : mapping of str to mapping, optional
        The `unusable_interfaces()` of each node.
    client_networks : sequence of str, default ()
        The networks that the login node has a route to, as `networks_here` returns them.

    Returns
    -------
    str
        The name of the interface, or the network.

    Raises
    ------
    UsageError
        A node lacks the interface; the message names the nodes and the interfaces that they have.
    """
    usable = common_interfaces(of_nodes)
    if not usable or "/" in wanted:
        networks = {node: by_network(of_node) for node, of_node in of_nodes.items()}
        if "/" in wanted:
            wanted = _network(wanted)
            of_nodes = {node: {**of_node, **networks[node]} for node, of_node in of_nodes.items()}
        elif usable := common_interfaces(networks):
            of_nodes = networks if wanted == "auto" else of_nodes
    if wanted == "auto":
        return _choose(of_nodes, usable, client_networks)
    without = {
        node: unusable.get(node, {}).get(
            wanted, f"there is no {'interface in it' if '/' in wanted else 'such interface'}"
        )
        for node, names in of_nodes.items()
        if wanted not in names
    }
    name_another = f"Name one that all nodes have: --interface {usable[0]}; or leave" if usable else "Leave"
    if without:
        existing = {
            node: f"{why} ({', '.join(_of_node(of_nodes[node])) or 'nothing else'} can be used)"
            for node, why in without.items()
        }
        raise UsageError(f"--interface {wanted}: {_grouped(existing)}", f"{name_another} --interface out")
    if len(of_nodes) > 1 and not _distinct(wanted, of_nodes):
        raise UsageError(
            f"--interface {wanted}: several nodes have the same address on it, so they cannot reach each other",
            f"{name_another} --interface out",
        )
    return wanted


def common_interfaces(of_nodes: Mapping[str, Mapping[str, Interface]]) -> list[str]:
    """Return the interfaces over which all nodes may reach each other, the best first."""
    first = next(iter(of_nodes.values()))
    names = [
        name
        for name in first
        if all(
            name in node and not node[name]["loopback"] and not node[name]["address"].startswith(LINK_LOCAL)
            for node in of_nodes.values()
        )
        and _distinct(name, of_nodes)
    ]
    return sorted(names, key=lambda name: _rank(name, [node[name] for node in of_nodes.values()]))


def _choose(
    of_nodes: Mapping[str, Mapping[str, Interface]], usable: Sequence[str], client_networks: Sequence[str]
) -> str:
    first = next(iter(of_nodes.values()))
    if not usable:
        if len(of_nodes) == 1 and "lo" in first:
            return "lo"
        existing = {node: ", ".join(sorted(names)) or "none" for node, names in of_nodes.items()}
        raise UsageError(
            f"no interface is up with an IPv4 address of its own on every node ({_grouped(existing)})",
            "Ask for nodes whose interfaces have the same names, such as those of one partition; see each: ip -4 addr",
        )
    best = usable[0]
    reached = [name for name in usable if _is_in(first[name]["address"], client_networks)]
    if reached and best not in reached:
        interfaces = {name: [node[name] for node in of_nodes.values()] for name in (best, reached[0])}
        if _is_fast(interfaces[reached[0]]) or not _is_fast(interfaces[best]):
            return reached[0]
    return best


def _of_node(interfaces: Mapping[str, Interface]) -> list[str]:
    return sorted(
        name for name, interface in interfaces.items() if not interface["loopback"] and "/" not in name
    )


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise UsageError(
            f"--interface {text}: {error}", "Write a network such as 10.0.0.0/24, or the name of an interface"
        ) from error


def _grouped(words: Mapping[str, str]) -> str:
    """Return what is said of each node, once for all nodes of which the same is said."""
    groups: dict[str, list[str]] = {}
    for node, said in words.items():
        groups.setdefault(said, []).append(node)
    shown = [
        f"{nodes[0]}{f' and {len(nodes) - 1} more' if len(nodes) > 1 else ''}: {said}"
        for said, nodes in groups.items()
    ]
    return "; ".join([*shown[:_GROUPS_SHOWN], *(["…"] if len(shown) > _GROUPS_SHOWN else [])])


def _is_fast(interfaces: Sequence[Interface]) -> bool:
    return all(each["kind"] == INFINIBAND or each["speed_mbits"] >= FAST_MBITS for each in interfaces)


def _is_in(address: str, networks: Sequence[str]) -> bool:
    try:
        return any(ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in networks)
    except ValueError as error:
        raise UsageError(f"--client-networks: {error}", "Write networks such as 10.0.0.0/24") from error


def preferred_first(of_host: Mapping[str, Interface], wanted: str) -> list[str]:
    """Return the addresses at which other hosts may reach this one: the interface `wanted` first, then the fastest."""
    names = [name for name, interface in of_host.items() if not interface["loopback"]]
    names.sort(key=lambda name: (name != wanted, *_rank(name, [of_host[name]])))
    return list(dict.fromkeys(of_host[name]["address"] for name in names))


def _rank(name: str, interfaces: Sequence[Interface]) -> tuple[bool, bool, int, str]:
    """Return the sort key of the interfaces of one name on several nodes: InfiniBand first, then the fastest.

    Those of containers and the like come last.
    """
    infiniband = all(interface["kind"] == INFINIBAND for interface in interfaces)
    internal = INTERNAL.match(name) is not None
    return internal, not infiniband, -min(interface["speed_mbits"] for interface in interfaces), name


def _distinct(name: str, of_nodes: Mapping[str, Mapping[str, Interface]]) -> bool:
    """Whether all nodes have different addresses on that interface."""
    return len({node[name]["address"] for node in of_nodes.values()}) == len(of_nodes)
