"""What a minicluster has used so far, from the host's /proc: CPU seconds of its nodes, requests to its file server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Served:
    """What the sftp servers of the login node have sent to the nodes, and how many requests they have answered."""

    sent_bytes: int = 0
    requests: int = 0

    def __sub__(self, other: Served) -> Served:
        return Served(self.sent_bytes - other.sent_bytes, self.requests - other.requests)


def cpu_s(folder: Path, nodes: int) -> float:
    """Return the CPU seconds of all that ever ran on the nodes and was waited for, by its parent or by the node's init.

    Once a job has ended all its processes have been, so a difference of two readings is the job's. The node's own
    daemons (slurmd, sshfs) are part of it.
    """
    spaces = set()
    for k in range(1, nodes + 1):
        pid = (folder / "pids" / f"node{k}").read_text().split()[0]
        spaces.add((Path("/proc") / pid / "ns" / "mnt").readlink())
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "ns" / "mnt").readlink() not in spaces:
                continue
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11:15])  # proc(5): utime, stime, cutime, cstime
    return total / TICKS


def served(folder: Path) -> Served:
    """Return the sum over the connections of all nodes; nothing where /home is a bind mount."""
    login = (Path("/proc") / (folder / "pids" / "login").read_text().split()[0] / "ns" / "mnt").readlink()
    sent = requests = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (
                not (entry / "comm").read_text().startswith("sftp-server")
                or (entry / "ns" / "mnt").readlink() != login
            ):
                continue
            io = dict(line.split(": ") for line in (entry / "io").read_text().splitlines())
        except OSError:
            continue
        sent += int(io["wchar"])  # data and its headers
        requests += int(
            io["syscw"]
        )  # it writes one answer per request, several in one write when it is behind
    return Served(sent, requests)
