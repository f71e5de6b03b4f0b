"""Disturbs a site while jobs run, as root: changes Slurm's settings, adds interfaces, cuts nodes off, sends signals."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Iterator, Sequence

from faults import LIST, remains
from slurmcluster import Minicluster
from user import User
from waiting import wait_until
from workload import Workload

NETWORKS = ("10.77.0", "10.78.0")
NOBODY = "02:ff:ff:ff:ff:ff"  # a hardware address that no host has


@contextlib.contextmanager
def slurm_settings(cluster: Minicluster, **settings: object) -> Iterator[None]:
    """Change slurm.conf on all hosts for the block."""
    conf = cluster.folder / "etc/slurm/slurm.conf"
    before = conf.read_text()
    text = before
    for name, value in settings.items():
        text = re.sub(rf"^{name}=.*\n", "", text, flags=re.MULTILINE) + f"{name}={value}\n"
    try:
        conf.write_text(text)
        reconfigure(cluster)
        yield
    finally:
        conf.write_text(before)
        reconfigure(cluster)


def reconfigure(cluster: Minicluster) -> None:
    """Make all daemons read slurm.conf again."""
    cluster.login(["scontrol", "reconfigure"], user="root")


def as_root(cluster: Minicluster, node: int, *commands: str) -> str:
    """Run shell commands as root on a node."""
    return cluster.node(node, ["bash", "-c", "set -e; " + "; ".join(commands)], user="root").stdout


def leave_nothing(user: User) -> None:
    """End all of a user's jobs and processes, so that what a failed test leaves does not fail the next one."""
    user.cancels_all()
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not remains(user), "clean nodes", 10)
        return
    for node in (1, 2, 3):
        as_root(user.cluster, node, f"pkill -KILL -u {user.name} || true")


def left_on(cluster: Minicluster, node: int) -> list[str]:
    """Return alice's processes and files on a node, as root sees them, cut off or not."""
    return cluster.node(node, ["bash", "-c", LIST]).stdout.splitlines()


def is_cleaned(cluster: Minicluster, node: int, timeout_s: float) -> None:
    """Wait until alice has no process and no file of a job on a node."""
    wait_until(lambda: not left_on(cluster, node), "clean node", timeout_s, lambda: left_on(cluster, node))


# ---- interfaces


@contextlib.contextmanager
def more_interfaces(cluster: Minicluster, count: int, nodes: Sequence[int] = (1, 2, 3)) -> Iterator[None]:
    """Give nodes more interfaces, each with an address that no other host can reach.

    Every second one has the same address on all nodes, as bridges of containers and of virtual machines have.
    """
    for node in nodes:
        for i in range(count):
            address = f"172.{17 + i}.0.1/16" if i % 2 else f"10.{100 + i}.0.{node}/24"
            as_root(
                cluster,
                node,
                f"ip link add more{i} type veth peer name peer{i}",
                f"ip addr add {address} dev more{i}",
                f"ip link set peer{i} up",
                f"ip link set more{i} up",
            )
    try:
        yield
    finally:
        for node in nodes:
            as_root(cluster, node, *(f"ip link del more{i} || true" for i in range(count)))


# ---- cables


@contextlib.contextmanager
def cut(cluster: Minicluster, node: int) -> Iterator[None]:
    """Unplug all cables of a node during the block."""
    cluster.cut(node)
    try:
        yield
    finally:
        cluster.heal(node)


@contextlib.contextmanager
def parted(cluster: Minicluster, node: int, others: Sequence[int]) -> Iterator[None]:
    """Part a node from the others during the block (see `part`); all still reach slurmctld."""
    part(cluster, node, others)
    try:
        yield
    finally:
        join(cluster, node, others)


def cut_at_random(
    cluster: Minicluster, workload: Workload, seconds: float, seed: int, *, longest_s: float = 30.0
) -> int:
    """Cut one random node after another, for a second to `longest_s` each; fail if the workload stands still.

    Returns
    -------
    int
        How many cuts there were.
    """
    choose = random.Random(seed)
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        node, cut_s = choose.choice((1, 2, 3)), choose.uniform(1, longest_s)
        print(f"{time.strftime('%H:%M:%S')} node{node} is cut off for {cut_s:.0f} s", flush=True)
        with cut(cluster, node):
            heal_at = time.monotonic() + cut_s
            wait_until(lambda at=heal_at: time.monotonic() > at, "healing", cut_s + 10)  # type: ignore[misc]
        count += 1
        workload.goes_on(1, timeout_s=120)
    return count


def part(cluster: Minicluster, node: int, others: Sequence[int]) -> None:
    """Cut all traffic between a node and the others; all of them still reach the login node, and so slurmctld.

    No side gets an error: packets go to a hardware address that no host has.
    """
    for a, b in both_ways(node, others):
        as_root(
            cluster,
            a,
            *(
                f"ip neigh replace {net}.{b} lladdr {NOBODY} dev {dev} nud permanent"
                for net, dev in devices()
            ),
        )


def join(cluster: Minicluster, node: int, others: Sequence[int]) -> None:
    """Restore the traffic that `part` has cut."""
    for a, b in both_ways(node, others):
        as_root(cluster, a, *(f"ip neigh del {net}.{b} dev {dev} || true" for net, dev in devices()))


def both_ways(node: int, others: Sequence[int]) -> list[tuple[int, int]]:
    return [pair for other in others for pair in ((node, other), (other, node))]


def devices() -> list[tuple[str, str]]:
    return list(zip(NETWORKS, ("eth0", "ib0"), strict=True))


# ---- processes


def pids(cluster: Minicluster, host: int | None, pattern: str, user: str = "alice") -> list[int]:
    """Return the ids of a user's processes whose command line matches, on a node or (`host` is None) the login node."""
    argv = ["pgrep", "-u", user, "-f", pattern]
    if host is None:
        found = cluster.login(argv, user="root", check=False)
    else:
        found = cluster.node(host, argv, user="root", check=False)
    return [int(word) for word in found.stdout.split()]


def signal_all(cluster: Minicluster, host: int | None, name: str, numbers: Sequence[int]) -> None:
    argv = ["kill", f"-{name}", *map(str, numbers)]
    if host is None:
        cluster.login(argv, user="root")
    else:
        cluster.node(host, argv, user="root")


@contextlib.contextmanager
def stopped(cluster: Minicluster, host: int | None, pattern: str, user: str = "alice") -> Iterator[list[int]]:
    """Keep processes stopped (SIGSTOP) during the block. Yields their ids."""
    numbers = pids(cluster, host, pattern, user)
    assert numbers, f"no process {pattern} of {user}"
    signal_all(cluster, host, "STOP", numbers)
    try:
        yield numbers
    finally:
        signal_all(cluster, host, "CONT", numbers)


def restart_slurmctld(cluster: Minicluster, down_s: float) -> None:
    """Kill slurmctld, and start it again after `down_s` seconds."""
    script = (
        "pkill -KILL -x slurmctld; "
        f"sleep {down_s:g}; "
        "setsid slurmctld -D >> /var/log/slurmctld-again.log 2>&1 < /dev/null & "
    )
    cluster.login(["bash", "-c", script], user="root", timeout_s=down_s + 30)
    (cluster.folder / "log/login/ended").unlink(missing_ok=True)  # else `start` of a node would fail
    wait_until(lambda: slurm_answers(cluster), "answer of slurmctld", 60)


def slurm_answers(cluster: Minicluster) -> bool:
    return cluster.login(["sinfo", "-h"], check=False).returncode == 0
