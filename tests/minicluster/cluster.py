"""Boots, breaks and ends a cluster: one init process for the switch, and below it one for the login node and each node.

The switch's pid namespace contains all processes of the cluster, and its network namespace all bridges. So killing that
one init ends the cluster in any state; only the cluster's folder is left.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  (sockets import it late, when an interpreter below /root or /home is hidden)
import fcntl
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import namespaces as ns
from siteconf import CGROUP_CONTROLLERS, SCRATCH, SFTP_PORT, Site, cgroup_v1, clean_environment, etc_files
from slurmconf import GPU_DEVICE, JOB_TMP_BASE, SLURMDBD_CONF, SRUN_PORTS, slurm_files

SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server")
PROXY = (Path(__file__).parent / "hostproxy.py").read_text()  # now: the file may be hidden later
UP_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 20.0
LOCK_TIMEOUT_S = 90.0
NOT_IN_SERVICE = ("DOWN", "UNKNOWN", "NOT_RESPONDING", "*")  # words in a node's state, scontrol(1)
ENDED = "ended"  # this file appears beside a host's logs when one of its daemons has ended


class MiniclusterError(Exception):
    """A failure that the user reads as one line."""


class Cluster:
    """The cluster of a folder, up or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def site(self) -> Site:
        return Site.from_json((self.folder / "site.json").read_text())

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
        try:
            self.folder.mkdir(mode=0o755)
            with self.locked():
                self._boot(site)
        except FileExistsError:
            raise MiniclusterError(f"another `up` has just made {self.folder}") from None
        except BaseException as error:
            if isinstance(error, Exception):
                print_logs(self.folder)
            self.down()
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
        if not self.folder.exists():
            return
        if not (self.folder / "site.json").exists():
            try:
                self.folder.rmdir()  # from an `up` that was killed just after making it
            except OSError:
                raise MiniclusterError(
                    f"{self.folder} is not the folder of a minicluster; it is not removed"
                ) from None
            return
        try:
            with self.locked() as is_there:
                switch = ns.Process.read(self.pid_file("switch"))
                if not is_there:
                    return
                if switch is not None:
                    if only_remains:
                        raise MiniclusterError(f"another `up` has just booted {self.folder}")
                    switch.kill(KILL_TIMEOUT_S)
                remove_cgroups(self.folder.name)
                remove_folder(self.folder)
        except FileNotFoundError:
            if self.folder.exists():
                raise

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Lock the cluster, so that one command at a time changes it. A killed command's lock is free at once.

        Yields whether the locked folder still exists: another `down` may have removed it during the wait.
        """
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
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
    (folder / "site.json").unlink()
    folder.rmdir()


def print_logs(folder: Path, lines: int = 8) -> None:
    for log in sorted(folder.glob("log/*/*.log")):
        tail = log.read_text(errors="replace").splitlines()[-lines:]
        if tail:
            print(f"--- {log.parent.name}/{log.name}", *tail, sep="\n", file=sys.stderr)


# ---- the network


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


# ---- the machine's cgroups: the one thing outside that `up --cgroup` makes, and `down` removes


def join_cgroups(site: Site, name: str, host: str, pid: int) -> None:
    """Put a node's init into separate groups, since Slurm gives a job's group the same name on every node."""
    for controller in site.cgroup_controllers():
        group = cgroup_v1(name, controller) / host
        if not (group.parent.parent / "cgroup.procs").exists():
            raise MiniclusterError(
                f"--cgroup needs cgroup v1's {controller} controller at {group.parent.parent}"
            )
        for folder in (group.parent, group):
            folder.mkdir(exist_ok=True)
            for limit in ("cpuset.cpus", "cpuset.mems") if controller == "cpuset" else ():
                (folder / limit).write_text((folder.parent / limit).read_text())  # they begin empty
        (group / "cgroup.procs").write_text(str(pid))


def remove_cgroups(name: str) -> None:
    """Remove the groups, innermost first. They must be empty."""
    for controller in CGROUP_CONTROLLERS:
        for folder, _, _ in os.walk(cgroup_v1(name, controller), topdown=False):
            Path(folder).rmdir()


# ---- inside: these run in an init, in its new namespaces


def set_up_switch(site: Site) -> ns.OnEnd:
    ns.mount("none", "/", flags=ns.MS_REC | ns.MS_PRIVATE)
    ns.mount("proc", "/proc", "proc")
    socket.sethostname("switch")
    bridges = [f"switch{index}" for index in range(len(site.interfaces()))]
    ip_batch([f"link add {name} up type bridge" for name in bridges])
    return lambda pid, status: None


def set_up_host(site: Site, host: str) -> ns.OnEnd:
    if site.job_tmp_mb:
        ns.renumber_mounts()
    socket.sethostname(site.hostname(host))
    set_up_network(site, host)
    set_up_mounts(site, host)
    if host == "login":
        daemons = start_login_daemons(site)
    else:
        if site.shared_fs == "sshfs":
            mount_homes(site)
        daemons = [Daemon(site, ["slurmd", "-D", "-N", host])]

    def on_end(pid: int, status: int) -> None:
        for daemon in daemons:
            if daemon.pid == pid:
                code = os.waitstatus_to_exitcode(status)
                Path(f"/var/log/{ENDED}").write_text(f"{daemon.name} of {host} has ended with status {code}")

    return on_end


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


def set_up_mounts(site: Site, host: str) -> None:
    """Mount the host's own folders, and hide the parts of the machine that it must not change or read."""
    folder = f"/proc/self/fd/{os.open(site.folder, os.O_PATH)}"  # this path works after the folder is hidden
    ns.mount("proc", "/proc", "proc")
    # A new sysfs shows this network namespace's devices. slurmd fails without a file system at /sys/fs/cgroup; an empty
    # one keeps all programs away from the host's groups.
    ns.mount("sysfs", "/sys", "sysfs")
    ns.tmpfs("/sys/fs/cgroup")
    if site.cgroup and host != "login":
        ns.unshare(ns.CLONE_NEWCGROUP)  # the groups that it has joined become the root of its cgroup tree
        for controller in site.cgroup_controllers():
            Path("/sys/fs/cgroup", controller).mkdir()
            ns.mount("cgroup", f"/sys/fs/cgroup/{controller}", "cgroup", data=controller)
    ns.bind(f"{folder}/etc", "/etc")
    for path in ("/tmp", "/var/tmp", "/dev/shm"):
        ns.tmpfs(path, mode="1777")
    ns.tmpfs("/root", mode="0700")
    ns.bind(f"{folder}/log/{host}", "/var/log")
    if site.shared_fs == "bind" or host == "login":
        ns.bind(f"{folder}/home", "/home")
    else:
        ns.tmpfs("/home")
    if site.home_on_nodes == "ro":
        ns.bind(f"{folder}/scratch", SCRATCH)
        if host != "login":
            ns.mount("none", "/home", flags=ns.MS_REMOUNT | ns.MS_BIND | ns.MS_RDONLY)
    ns.tmpfs("/run")
    for name in ("munge", "slurmd", "slurmctld", "user"):
        Path("/run", name).mkdir()
    for number in range(site.gpus):
        os.mknod(
            f"{GPU_DEVICE}{number}", stat.S_IFCHR | 0o666, os.makedev(195, number)
        )  # no driver is behind it
    if site.job_tmp_mb:
        Path(JOB_TMP_BASE).mkdir()
        ns.tmpfs(JOB_TMP_BASE, size_mb=site.job_tmp_mb)
    ns.bind(f"{folder}/munge", "/run/munge")
    if Path(site.folder).exists():
        ns.tmpfs(site.folder)
    for path in ("/etc", "/"):
        ns.mount("none", path, flags=ns.MS_REMOUNT | ns.MS_BIND | ns.MS_RDONLY)


def start_login_daemons(site: Site) -> list[Daemon]:
    deadline = time.monotonic() + UP_TIMEOUT_S
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
    done = subprocess.run(make, capture_output=True, text=True, timeout=UP_TIMEOUT_S)
    if done.returncode:
        raise MiniclusterError(f"mariadb-install-db: {done.stdout}{done.stderr}")
    listening = folder / "mysqld.sock"
    mariadbd = ["mariadbd", "--no-defaults", *own, *quick, "--skip-networking", f"--socket={listening}"]
    database = Daemon(site, mariadbd)
    database.wait_until(listening.exists, deadline)
    slurmdbd = Daemon(site, ["slurmdbd", "-D"])
    slurmdbd.wait_until(partial(listens, 6819), deadline)
    return [database, slurmdbd]


def mount_homes(site: Site) -> None:
    """Mount each home with its user's rights: the server runs as that user, so files get the right owner."""
    for index, user in enumerate(site.users):
        home = Path(site.home(user))
        home.mkdir()
        # By default sshfs refuses absolute links and links with `..`; venvs and conda environments have both.
        options = f"directport={SFTP_PORT + index},allow_other,default_permissions,no_contain_symlinks"
        done = subprocess.run(
            ["sshfs", "-o", options, f"login:{home}", str(home)], capture_output=True, text=True, timeout=30
        )
        if done.returncode:
            raise MiniclusterError(f"sshfs {home}: {done.stderr.strip()}")


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


def sftp_server() -> str:
    return next(path for path in SFTP_SERVERS if Path(path).exists())


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def exec_as(site: Site, user: str, argv: list[str], is_login: bool) -> NoReturn:
    """Become the user, in their home, with a clean environment and the default signals, and exec."""
    environment = clean_environment(site, user)
    if "TERM" in os.environ:
        environment["TERM"] = os.environ["TERM"]
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(
            signum, signal.SIG_DFL
        )  # Python ignores these signals, and the new program would inherit that
    if user != "root" and is_login:
        for name, soft in site.login_limits.items():
            limit = getattr(resource, f"RLIMIT_{name.upper()}")
            resource.setrlimit(limit, (soft, resource.getrlimit(limit)[1]))
    os.initgroups(user, site.uid(user))
    os.setgid(site.uid(user))
    os.setuid(site.uid(user))
    os.umask(int(site.umask, 8))
    os.chdir(environment["HOME"])
    ns.die_with_parent()  # after setuid, which clears it: prctl(2)
    os.environ["PATH"] = environment["PATH"]
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        print(f"minicluster: {argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def wait_until(probe: Callable[[], bool], what: str, deadline: float, interval_s: float = 0.05) -> None:
    started = time.monotonic()
    while not probe():
        if time.monotonic() > deadline:
            raise MiniclusterError(f"waited {time.monotonic() - started:.0f} s in vain until {what}")
        time.sleep(interval_s)
