"""Lists the Debian packages that the cluster needs, and installs them without starting their services."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from common import MiniclusterError
from daemons import SFTP_SERVERS
from siteconf import Site

POLICY = Path("/usr/sbin/policy-rc.d")
SERVICES = ("munge", "slurmctld", "slurmd", "slurmdbd", "mariadb")


def missing_packages(site: Site | None = None) -> list[str]:
    """Return the missing packages of a site, or of all. A package is missing if a program that is used from it is."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    def lacks(*programs: str) -> bool:
        return not all(shutil.which(program, path=path) for program in programs)

    wanted = {
        "slurm-wlm": lacks("slurmctld", "slurmd", "sbatch"),
        "munge": lacks("munged"),
        "iproute2": lacks("ip"),
        "util-linux": lacks("nsenter"),
    }
    if site and site.root:
        for package in ("slurm-wlm", "munge"):
            del wanted[package]
        wanted["mmdebstrap"] = lacks("mmdebstrap")
    if site is None or site.accounting:
        wanted |= {"slurmdbd": lacks("slurmdbd"), "mariadb-server": lacks("mariadbd", "mariadb-install-db")}
    if site is None or site.open_ports:
        wanted |= {"nftables": lacks("nft")}
    if site is None or site.shared_fs == "sshfs":
        wanted |= {
            "sshfs": lacks("sshfs"),
            "socat": lacks("socat"),
            "openssh-sftp-server": not any(Path(server).exists() for server in SFTP_SERVERS),
        }
    return [package for package, is_missing in wanted.items() if is_missing]


def install(packages: list[str]) -> None:
    """Install with apt-get. The cluster starts its own daemons, so the packages' services are kept from starting."""
    if shutil.which("apt-get") is None:
        raise MiniclusterError(f"no apt-get here; install what Debian calls {' '.join(packages)}")
    if os.geteuid() != 0:
        raise MiniclusterError(f"must be run as root, to install {' '.join(packages)} (try sudo)")
    print(f"installing {' '.join(packages)}", flush=True)
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")  # invoke-rc.d(8): "action forbidden by policy"
        POLICY.chmod(0o755)
    try:
        apt_get("update", "-qq")
        apt_get("install", "-y", "-qq", "--no-install-recommends", *packages)
    finally:
        if ours:
            POLICY.unlink()
    if shutil.which("systemctl"):  # do not start them at the next boot, either
        subprocess.run(["systemctl", "disable", "--quiet", *SERVICES], timeout=60, check=False)


def apt_get(*arguments: str) -> None:
    wait_for_others = "--option=DPkg::Lock::Timeout=120"
    command = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", wait_for_others, *arguments]
    if subprocess.run(command, timeout=900).returncode:
        raise MiniclusterError(f"failed: apt-get {' '.join(arguments)}")
