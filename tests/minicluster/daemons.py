"""The daemons of a host: munge, Slurm, its database, the server of homes, a proxy."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import MiniclusterError, wait_until
from siteconf import SFTP_PORT, Site, clean_environment

SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server")
READY_TIMEOUT_S = 60.0
PROXY = (Path(__file__).parent / "hostproxy.py").read_text()  # now: the file may be hidden later


class Daemon:
    """A daemon that lives as long as this init; its output goes to the init's log."""

    def __init__(self, site: Site, argv: list[str], user: str = "root") -> None:
        uid = site.uid(user)
        self.name = argv[0]
        self._process = subprocess.Popen(
            argv,
            env=clean_environment(site, user),
            cwd="/",
            user=uid,
            group=uid,
            extra_groups=[],
            umask=0o022,
        )
        self.pid = self._process.pid

    def wait_until(self, ready: Callable[[], bool], deadline: float) -> None:
        def probe() -> bool:
            if self._process.poll() is not None:
                raise MiniclusterError(f"{self.name} has ended with status {self._process.returncode}")
            return ready()

        wait_until(probe, f"{self.name} was ready", deadline)


def start_login_daemons(site: Site) -> list[Daemon]:
    deadline = time.monotonic() + READY_TIMEOUT_S
    key = Path("/run/munge.key")
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    socket_file = Path("/run/munge/munge.socket.2")
    munged = Daemon(
        site,
        [
            "munged",
            "--foreground",
            f"--socket={socket_file}",
            f"--key-file={key}",
            "--log-file=/var/log/munged.log",
            "--pid-file=/run/munged.pid",
            "--seed-file=/run/munged.seed",
        ],
    )
    munged.wait_until(socket_file.exists, deadline)
    daemons = [munged]
    if site.accounting:
        daemons += start_accounting(site, deadline)
    daemons.append(Daemon(site, ["slurmctld", "-D"]))
    if site.proxy_port:
        daemons.append(Daemon(site, ["python3", "-c", PROXY, str(site.proxy_port)], user=site.users[0]))
        daemons[-1].wait_until(partial(listens, site.proxy_port), deadline)
    if site.shared_fs == "sshfs":
        for index, user in enumerate(site.users):
            port = SFTP_PORT + index
            server = ["socat", f"TCP-LISTEN:{port},fork,reuseaddr,nodelay", f"EXEC:{sftp_server()}"]
            daemons.append(Daemon(site, server, user=user))
            daemons[-1].wait_until(partial(listens, port), deadline)
    return daemons


def start_accounting(site: Site, deadline: float) -> list[Daemon]:
    """Start slurmdbd and its database, which lies in memory and listens on a socket alone."""
    folder = Path("/run/mysqld")  # where its clients look for the socket
    folder.mkdir()
    own = [f"--datadir={folder}/data", "--user=root"]
    quick = [
        "--innodb-buffer-pool-size=32M",
        "--innodb-log-file-size=8M",
        "--innodb-flush-log-at-trx-commit=0",
    ]
    make = ["mariadb-install-db", "--no-defaults", *own, *quick, "--skip-test-db"]
    done = subprocess.run(make, capture_output=True, text=True, timeout=READY_TIMEOUT_S)
    if done.returncode:
        raise MiniclusterError(f"mariadb-install-db: {done.stdout}{done.stderr}")
    listening = folder / "mysqld.sock"
    mariadbd = ["mariadbd", "--no-defaults", *own, *quick, "--skip-networking", f"--socket={listening}"]
    database = Daemon(site, mariadbd)
    database.wait_until(listening.exists, deadline)
    slurmdbd = Daemon(site, ["slurmdbd", "-D"])
    slurmdbd.wait_until(partial(listens, 6819), deadline)
    return [database, slurmdbd]


def sftp_server() -> str:
    return next(path for path in SFTP_SERVERS if Path(path).exists())


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
