"""Finds out over which of the first node's interfaces this host reaches a cluster.

Only the client imports this module.
"""

from __future__ import annotations

import contextlib
import socket
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from mpiboot.protocol.endpoint import Endpoint

# How long an attempt may take where a firewall drops what it does not let through.
REACH_S = 2.0


def reached_interfaces(endpoint: Endpoint) -> list[str]:
    """Return the interfaces of the first node on which the cluster's dashboard accepts connections from here."""
    port = urllib.parse.urlsplit(endpoint.dashboard).port or 0
    with ThreadPoolExecutor(max(1, len(endpoint.addresses))) as pool:
        reached = list(pool.map(lambda address: accepts(address, port), endpoint.addresses.values()))
    return [name for name, is_reached in zip(endpoint.addresses, reached, strict=True) if is_reached]


def accepts(address: str, port: int) -> bool:
    """Whether something at the address and port accepts a connection within `REACH_S` seconds."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), REACH_S):
        return True
    return False


def no_route_remedy(endpoint: Endpoint, job_id: str) -> str | None:
    """Return what to do if this host does not reach the scheduler's port; None if it does: the fault is elsewhere."""
    reached, node = reached_interfaces(endpoint), endpoint.nodes[0]
    if endpoint.interface in reached:
        url = urllib.parse.urlsplit(endpoint.address)
        if accepts(url.hostname or "", url.port or 0):
            return None
        return (
            f"This host reaches {node} on {endpoint.interface}, but not its port {url.port}; a firewall may be between "
            f"them: mpiboot stop {job_id}; then mpiboot submit --scheduler-port P, with a port that it leaves open"
        )
    if not endpoint.addresses:
        return None
    if reached:
        return (
            f"This host reaches {node} on {reached[0]} ({endpoint.addresses[reached[0]]}), not on "
            f"{endpoint.interface}: mpiboot stop {job_id}; then mpiboot submit --interface {reached[0]}"
        )
    tried = ", ".join(f"{name} {address}" for name, address in endpoint.addresses.items())
    return (
        f"This host reaches {node} on no interface ({tried}). See whether the node is up: mpiboot status {job_id}. If it "
        "is, name ports that a firewall leaves open (mpiboot submit --worker-port LOW:HIGH), connect from a host that "
        "has a route, or work within the job: mpiboot submit [options] -- COMMAND"
    )


def reached_dashboard(endpoint: Endpoint) -> str:
    """Return the link to the dashboard, with an address that this host reaches if there is one."""
    url = urllib.parse.urlsplit(endpoint.dashboard)
    if url.hostname is None or accepts(url.hostname, url.port or 0):
        return endpoint.dashboard
    for name in reached_interfaces(endpoint):
        return url._replace(netloc=f"{endpoint.addresses[name]}:{url.port}").geturl()
    return endpoint.dashboard
