"""Switches, cables, addresses and firewalls of a cluster."""

from __future__ import annotations

import subprocess

from common import MiniclusterError
from siteconf import SFTP_PORT, Site
from slurmconf import SRUN_PORTS


def ports(site: Site, host: str) -> list[tuple[str, str]]:
    """Return the switch's port and the host's interface of each cable of a host."""
    switches = list(site.interfaces())
    return [(f"{host}.{switches.index(name)}", name) for name in site.interfaces(host)]


def plug_commands(site: Site, host: str, pid: int) -> list[str]:
    """Return the commands that connect a host. Its hardware addresses never change, since other hosts cache them."""
    number = site.host_number(host)
    return [
        f"link add {port} master switch{index} up type veth peer name {name} "
        f"address 02:00:00:00:{int(index):02x}:{number:02x} netns {pid}"
        for port, name in ports(site, host)
        for index in [port.rpartition(".")[2]]
    ]


def ip_batch(commands: list[str], prefix: list[str] | None = None, check: bool = True) -> None:
    """Run ip(8) commands; without `check`, run all of them even if some fail."""
    argv = [*(prefix or []), "ip", *([] if check else ["-force"]), "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(commands), capture_output=True, text=True, timeout=20)
    if check and done.returncode:
        raise MiniclusterError(f"ip: {done.stderr.strip()}")


def set_up_network(site: Site, host: str) -> None:
    commands = ["link set lo up"]
    for interface, network in site.interfaces(host).items():
        commands += [
            f"addr add {network}.{site.host_number(host)}/24 dev {interface}",
            f"link set {interface} up",
        ]
    ip_batch(commands)
    if site.open_ports:
        close_ports(site)


def close_ports(site: Site) -> None:
    """Let this host take new TCP connections on few ports alone, and refuse the others at once."""
    ports = f"22, 6817-6819, {SFTP_PORT}-{SFTP_PORT + len(site.users)}, {SRUN_PORTS}, {site.open_ports}"
    rules = f"""\
table inet firewall {{
    chain input {{
        type filter hook input priority 0; policy accept;
        iifname "lo" accept
        ct state established,related accept
        tcp dport {{ {ports}, {site.proxy_port} }} accept
        meta l4proto tcp reject with tcp reset
    }}
}}
"""
    done = subprocess.run(["nft", "-f", "-"], input=rules, capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise MiniclusterError(f"nft: {done.stderr.strip()}")
