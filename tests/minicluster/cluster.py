"""Boots, breaks and ends a cluster: one init process for the switch, and below it one for the login node and each node.

The switch's pid namespace contains all processes of the cluster, and its network namespace all bridges. So killing that
one init ends the cluster in any state; only the cluster's folder is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import namespaces as ns
from cgroups import join_cgroups, remove_cgroups
from common import MiniclusterError, wait_until
from hosts import ENDED, exec_as, set_up_host, set_up_switch
from network import ip_batch, plug_commands, ports
from siteconf import Site, clean_environment, etc_files
from slurmconf import SLURMDBD_CONF, slurm_files

UP_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 20.0
LOCK_TIMEOUT_S = 90.0
NOT_IN_SERVICE = ("DOWN", "UNKNOWN", "NOT_RESPONDING", "*")  # words in a node's state, scontrol(1)


class Cluster:
    """The cluster of a folder, up or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def _site_file(self) -> Path:
        return self.folder / "site.json"

    @property
    def site(self) -> Site:
        return Site.from_json(self._site_file.read_text())

    def pid_file(self, host: str) -> Path:
        return self.folder / "pids" / host

    def process(self, host: str) -> ns.Process:
        """Return the init of the switch, the login node or a node."""
        if not self.is_up():
            raise MiniclusterError(f"no cluster is up in {self.folder}; `minicluster up` boots one")
        process = ns.Process.read(self.pid_file(host))
        if process is None:
            known = ", ".join(self.site.host_names())
            raise MiniclusterError(
                f"{host} is not up (hosts: {known}); `minicluster start` boots a killed node"
            )
        return process

    def is_up(self) -> bool:
        return ns.Process.read(self.pid_file("switch")) is not None

    # ---- up and down

    def up(self, site: Site) -> None:
        if self.is_up():
            raise MiniclusterError(f"{site.name} is already up in {self.folder}")
        self.down(only_remains=True)  # remains of a killed `up`, or of a reboot
        taken = MiniclusterError(f"another `up` has just made {self.folder}")
        try:
            self.folder.mkdir(mode=0o755)
        except FileExistsError:
            raise taken from None
        with self.locked() as is_there:
            # Another `up` may have taken this one's empty folder for remains, or have locked it first.
            if not is_there or self._site_file.exists():
                raise taken
            try:
                self._boot(site)
            except BaseException as error:
                if isinstance(error, Exception):
                    print_logs(self.folder)
                self._end()
                raise

    def _boot(self, site: Site) -> None:
        deadline = time.monotonic() + UP_TIMEOUT_S
        write_files(self.folder, site)
        switch = ns.spawn(
            "switch",
            lambda: set_up_switch(site),
            parent=None,
            pid_file=self.pid_file("switch"),
            log=self._log_file("switch"),
            timeout_s=UP_TIMEOUT_S,
        )
        switch.release()
        switch.wait_ready(deadline)
        self._spawn_host(site, "login").wait_ready(deadline)
        for node in [self._spawn_host(site, name) for name in site.node_names()]:
            node.wait_ready(deadline)
        self._wait(deadline, "every node is idle", self._all_idle, site.host_names())

    def down(self, only_remains: bool = False) -> None:
        """End everything and remove the folder. Idempotent; works in any state that an interrupted `up` can leave."""
        with self.locked() as is_there:
            if not is_there:
                return
            if not self._site_file.exists():
                try:
                    self.folder.rmdir()  # from an `up` that was killed just after making it
                except OSError:
                    raise MiniclusterError(
                        f"{self.folder} is not the folder of a minicluster; it is not removed"
                    ) from None
                return
            if only_remains and self.is_up():
                raise MiniclusterError(f"another `up` has just booted {self.folder}")
            self._end()

    def _end(self) -> None:
        """End everything and remove the folder, which is locked."""
        switch = ns.Process.read(self.pid_file("switch"))
        if switch is not None:
            switch.kill(KILL_TIMEOUT_S)
        remove_cgroups(self.folder.name)
        remove_folder(self.folder)

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Lock the cluster, so that one command at a time changes it. A killed command's lock is free at once.

        Yields whether the locked folder exists: another `down` may have removed it during the wait.
        """
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        try:
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            yield False
            return
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise MiniclusterError(
                            f"another minicluster command has held {self.folder} for {LOCK_TIMEOUT_S:g} s"
                        ) from None
                    time.sleep(0.05)
            yield self.folder.exists() and os.path.samestat(self.folder.stat(), os.fstat(descriptor))
        finally:
            os.close(descriptor)

    # ---- hosts

    def _log_file(self, host: str) -> Path:
        return self.folder / "log" / host / "init.log"

    def _spawn_host(self, site: Site, host: str) -> ns.Init:
        (self.folder / "log" / host / ENDED).unlink(missing_ok=True)
        init = ns.spawn(
            host,
            lambda: set_up_host(site, host),
            parent=self.process("switch"),
            pid_file=self.pid_file(host),
            log=self._log_file(host),
            timeout_s=UP_TIMEOUT_S,
        )
        # The kernel frees a killed node's network namespace, with its cables, a little later than its processes.
        self._switch_ip([f"link del {port}" for port, _ in ports(site, host)], check=False)
        self._switch_ip(plug_commands(site, host, init.process.pid))
        if site.cgroup and host != "login":
            join_cgroups(site, self.folder.name, host, init.process.pid)
        init.release()
        return init

    def _switch_ip(self, commands: list[str], check: bool = True) -> None:
        switch = self.process("switch")
        ip_batch(commands, prefix=["nsenter", f"--net=/proc/{switch.pid}/ns/net"], check=check)

    def kill(self, host: str) -> None:
        """End all processes of a node at once, like a power cut."""
        with self.locked():
            self.process(host).kill(KILL_TIMEOUT_S)
            self.pid_file(host).unlink()

    def start(self, host: str) -> None:
        """Boot a killed node, and return when Slurm may start jobs on it again."""
        if ns.Process.read(self.pid_file(host)) is not None:
            raise MiniclusterError(f"{host} is already up")
        with self.locked():
            deadline = time.monotonic() + UP_TIMEOUT_S
            before = self._slurmd_start_s(host)
            # Slurm counts whole seconds: it would not notice a node that restarts in the second of its kill.
            wait_until(lambda: time.time() > before + 1, f"{host} has been down for a second", deadline)
            self._spawn_host(self.site, host).wait_ready(deadline)

            def registered() -> bool:
                state = self._node_facts(host).get("State", "DOWN")
                return self._slurmd_start_s(host) > before and not any(
                    word in state for word in NOT_IN_SERVICE
                )

            self._wait(deadline, f"{host} has registered", registered, ["login", host])

    def set_link(self, host: str, state: str, interface: str | None = None) -> None:
        self.process(host)
        chosen = [port for port, name in ports(self.site, host) if interface in (None, name)]
        if not chosen:
            raise MiniclusterError(
                f"{host} has no interface {interface}; it has {', '.join(self.site.interfaces(host))}"
            )
        self._switch_ip([f"link set {port} {state}" for port in chosen])

    # ---- asking

    def run(self, host: str, user: str, argv: list[str]) -> int:
        """Run a command on a host as a user, with this process's standard streams; return its exit status."""
        site = self.site
        process = self.process(host)
        return ns.run_inside(process, lambda: exec_as(site, user, argv, is_login=host == "login"))

    def _slurm(self, argv: list[str]) -> str:
        """Return the output of a Slurm command on the login node; "" if slurmctld does not answer yet."""
        login = self.process("login")
        command = ["nsenter", f"--target={login.pid}", "--mount", "--net", "--uts", "--ipc", *argv]
        done = subprocess.run(
            command,
            env=clean_environment(self.site, "root") | {"SLURM_TIME_FORMAT": "%s"},
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.stdout if done.returncode == 0 else ""

    def _all_idle(self) -> bool:
        return self._slurm(["sinfo", "-h", "-p", "multiple", "-o", "%T %D"]).split() == [
            "idle",
            str(self.site.nodes),
        ]

    def _slurmd_start_s(self, host: str) -> int:
        """Return the start time of the node's slurmd that Slurm knows, in seconds since the epoch."""
        started = self._node_facts(host).get("SlurmdStartTime", "")
        return int(started) if started.isdecimal() else 0

    def _node_facts(self, host: str) -> dict[str, str]:
        words = self._slurm(["scontrol", "--oneliner", "show", "node", host]).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def _wait(self, deadline: float, what: str, probe: Callable[[], bool], hosts: list[str]) -> None:
        """Wait until `probe` is true; fail at once if a Slurm daemon has ended."""

        def probe_the_living() -> bool:
            for host in hosts:
                ended = self.folder / "log" / host / ENDED
                if ended.exists():
                    raise MiniclusterError(ended.read_text())
            return probe()

        wait_until(probe_the_living, what, deadline, interval_s=0.1)

    def status(self) -> str:
        site = self.site
        dead = [name for name in site.host_names() if ns.Process.read(self.pid_file(name)) is None]
        return "\n".join(
            [
                f"name    {site.name}",
                f"folder  {self.folder}",
                f"home    {self.folder}/home ({site.shared_fs}; users {', '.join(site.users)})",
                f"nodes   {site.nodes} of {site.cpus} CPUs and {site.memory_mb} MB; killed: {', '.join(dead) or 'none'}",
                self._slurm(["sinfo"]),
            ]
        )


# ---- the folder


def write_files(folder: Path, site: Site) -> None:
    (folder / "site.json").write_text(site.to_json())
    copy_etc(folder / "etc")
    for path, text in (etc_files(site) | slurm_files(site)).items():
        file = folder / "etc" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # writing through a link would change the machine's own file
        file.write_text(text)
        if file.name == SLURMDBD_CONF:
            file.chmod(0o600)  # slurmdbd insists
    for name in ("pids", "munge", *(f"log/{host}" for host in ["switch", *site.host_names()])):
        (folder / name).mkdir(parents=True)
    for shared in ("home", "scratch"):
        (folder / shared).mkdir()
        for user in site.users:
            own = folder / shared / user
            own.mkdir(mode=0o700)
            os.chown(own, site.uid(user), site.uid(user))


def copy_etc(copy: Path) -> None:
    """Copy the machine's /etc: a package installation would replace the files over which the cluster's are mounted."""
    # If `up` is killed, `down` may remove the copy at once.
    argv = ["setpriv", "--pdeathsig", "KILL", "cp", "-a", "/etc", str(copy)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    # A package installation may remove one of its temporary files during the copy.
    errors = [line for line in done.stderr.splitlines() if "No such file" not in line]
    if errors:
        raise MiniclusterError(f"cannot copy /etc to {copy}: {errors[0]}")
    shutil.rmtree(copy / "slurm", ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove the folder; `site.json` last, since it marks the folder as a minicluster's after an interruption."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != "site.json":
            entry.unlink()
    (folder / "site.json").unlink(missing_ok=True)  # an interrupted `up` may not have written it
    folder.rmdir()


def print_logs(folder: Path, lines: int = 8) -> None:
    for log in sorted(folder.glob("log/*/*.log")):
        tail = log.read_text(errors="replace").splitlines()[-lines:]
        if tail:
            print(f"--- {log.parent.name}/{log.name}", *tail, sep="\n", file=sys.stderr)
