"""The second user's port scans of a job, as tests run them: scan.py on the login node and on the job's nodes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from disturb import pids
from slurmcluster import Minicluster
from user import User
from waiting import wait_until

SCAN = Path(__file__).with_name("scan.py").read_text()


class Scan:
    """A port scan by the second user: from the login node (`host` is None) of all nodes, or from a node of itself."""

    def __init__(self, second: User, host: int | None, nodes: Sequence[int], each: int) -> None:
        self.host, self.cluster = host, second.cluster
        self.output = second.home / f"scan-{host}.out"
        self._end = second.home / "scan.end"
        self._end.unlink(missing_ok=True)
        of = [host] if host else nodes
        addresses = [f"10.{net}.0.{node}" for node in of for net in (77, 78)]
        orders = {
            "addresses": addresses + ["127.0.0.1"] * bool(host),
            "local": bool(host),
            "each": each,
            "end": self._end.name,
        }
        start = f'setsid /usr/bin/python3 -c "$0" "$1" > {self.output.name} 2>&1 &'
        second.types("bash", "-c", start, SCAN, json.dumps(orders), node=host)

    def last(self) -> dict[str, Any]:
        """Return the scan's last report."""
        lines = self.output.read_text().splitlines() if self.output.exists() else []
        none: dict[str, Any] = {"ports": [], "held": 0, "closed": 0, "full_scans": 0}
        return json.loads(lines[-1]) if lines else none

    def end(self) -> None:
        self._end.touch()
        running = pids(self.cluster, self.host, "full_scans", "second")
        wait_until(
            lambda: not (running and pids(self.cluster, self.host, "full_scans", "second")),
            "end of the scan",
            20,
        )


@contextlib.contextmanager
def strangers(second: User, nodes: Sequence[int] = (1, 2), each: int = 2) -> Iterator[list[Scan]]:
    """Scans from the login node and from every node, until the end of the block."""
    scans = [Scan(second, host, nodes, each) for host in (None, *nodes)]
    try:
        yield scans
    finally:
        for scan in scans:
            scan.end()


def listening(cluster: Minicluster, node: int) -> set[str]:
    """Return the listening TCP ports of a node as a scan would name them, seen by root."""
    own = [f"10.{net}.0.{node}" for net in (77, 78)]
    places = set()
    for line in cluster.node(node, ["ss", "-Hltn"], user="root").stdout.splitlines():
        host, _, port = line.split()[3].rpartition(":")
        for address in own if host in ("0.0.0.0", "*", "[::]") else [host]:
            places.add(f"{address}:{port}")
    return places


def missed(scans: Sequence[Scan]) -> list[str]:
    """Return the listening ports that are not held from their own node, or, after a full scan, from the login node."""
    from_login, *on_nodes = scans
    found: list[str] = []
    for scan in on_nodes:
        there = listening(scan.cluster, scan.host)
        found += sorted(there - {*scan.last()["ports"]})
        if from_login.last()["full_scans"]:
            of_all = {place for place in there if not place.startswith("127.")}
            found += [f"{place} from login" for place in of_all - {*from_login.last()["ports"]}]
    return found


def hold_all(scans: Sequence[Scan], timeout_s: float = 60) -> None:
    """Wait until strangers hold every listening port of the nodes."""
    wait_until(lambda: not missed(scans), "hold on every port", timeout_s, lambda: missed(scans))


def tell(scans: Sequence[Scan]) -> None:
    """Print how much the strangers hold."""
    for scan in scans:
        last = scan.last()
        figures = {name: last[name] for name in ("held", "closed", "full_scans")}
        print(f"scan from {scan.host or 'login'}: {len(last['ports'])} ports, {figures}")
