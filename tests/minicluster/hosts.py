"""Makes a host, inside its init, in its new namespaces; and starts users' commands there."""

from __future__ import annotations

import encodings.idna  # noqa: F401  (sockets import it late, when an interpreter below /root or /home is hidden)
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import namespaces as ns
from common import MiniclusterError
from daemons import Daemon, start_login_daemons
from network import ip_batch, set_up_network
from roots import root_folder
from siteconf import SCRATCH, SFTP_PORT, Site, clean_environment
from slurmconf import GPU_DEVICE, JOB_TMP_BASE

ENDED = "ended"  # this file appears beside a host's logs when one of its daemons has ended


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


def set_up_mounts(site: Site, host: str) -> None:
    """Mount the host's own folders, and hide the parts of the machine that it must not change or read."""
    folder = f"/proc/self/fd/{os.open(site.folder, os.O_PATH)}"  # this path works after the folder is hidden
    if site.root:
        ns.bind(f"{root_folder(site.root)}/usr", "/usr")
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
    for path in ("/etc", *(["/usr"] if site.root else []), "/"):
        ns.mount("none", path, flags=ns.MS_REMOUNT | ns.MS_BIND | ns.MS_RDONLY)


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
