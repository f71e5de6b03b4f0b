"""The command line of minicluster: arguments, output, and exit status."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from cluster import Cluster
from common import MiniclusterError
from deps import install, missing_packages
from roots import root_folder, why_not
from siteconf import SITES, Site, cgroup_v1, read_site


def command_parser(**options: Any) -> argparse.ArgumentParser:
    """Return a parser of `[--user USER | --root] [CMD...]`."""
    run = argparse.ArgumentParser(prog="minicluster login|node", **options)
    run.add_argument("--user", help="run as this user (default: the ordinary one)")
    run.add_argument("--root", action="store_const", const="root", dest="user", help="run as root")
    return run


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="minicluster", description="A real Slurm of some nodes and a login node on this machine."
    )
    top.add_argument(
        "--name", default="mini", help="several clusters can be up under different names (default: mini)"
    )
    top.add_argument(
        "--dir", type=Path, help="the folder it lives in (/var/lib/minicluster-NAME); give it every time"
    )
    commands = top.add_subparsers(dest="command", required=True)

    up = commands.add_parser("up", help="boot the cluster; returns when every node is idle")
    names = ", ".join(sorted(path.stem for path in SITES.glob("*.toml")))
    up.add_argument("--site", help=f"what the cluster is like ({names}); further options change the site")
    up.add_argument("--nodes", type=int, help="default: 3")
    up.add_argument("--cpus", type=int, help="CPUs that each node claims to have (8)")
    up.add_argument(
        "--memory", type=int, metavar="MB", help="memory that each node claims (its share of the host's)"
    )
    up.add_argument("--shared-fs", choices=("bind", "sshfs"), help="how nodes reach /home (bind)")
    up.add_argument("--interface", help="name of the second, fast interface (ib0)")
    up.add_argument(
        "--cgroup", action="store_true", default=None, help="enforce memory limits (needs cgroup v1)"
    )
    up.add_argument("--user", help="name of the ordinary user (alice); another is called `second`")

    commands.add_parser("down", help="end the cluster and remove all of it, homes too")
    for name in ("login", "node"):
        text = "run a command there; a shell without one"
        run = commands.add_parser(name, help=text, parents=[command_parser(add_help=False)])
        if name == "node":
            run.add_argument("number", type=int)
        run.add_argument("argv", nargs=argparse.REMAINDER, metavar="CMD")
    for name, text in (
        ("kill", "end everything on a node at once"),
        ("start", "boot a killed node; returns when it takes jobs"),
        ("cut", "unplug a node's network"),
        ("heal", "plug it in again"),
    ):
        node = commands.add_parser(name, help=text)
        node.add_argument("number", type=int)
        if name in ("cut", "heal"):
            node.add_argument("--interface", help="only this interface (default: all)")
    commands.add_parser("status", help="show what is up, and where")
    deps = commands.add_parser("deps", help="list the missing Debian packages")
    deps.add_argument("--install", action="store_true", help="install them (no service of theirs is started)")
    deps.add_argument("--site", help="only those of this site; and make its root folder, if it has one")
    return top


def total_memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


DEFAULTS = {
    "nodes": 3,
    "cpus": 8,
    "shared_fs": "bind",
    "interface": "ib0",
    "user": "alice",
    "cgroup": False,
}


def site_of(options: argparse.Namespace, folder: Path) -> Site:
    """Return the site of the options, of the file that `--site` names, and of defaults, in this order."""
    given = {key: value for key in (*DEFAULTS, "memory") if (value := getattr(options, key)) is not None}
    of_site = read_site(options.site) if options.site else {}
    if "cgroup" not in given and of_site.get("cgroup") and not (cgroup_v1("") / "cgroup.procs").exists():
        print("no cgroup v1 here: the site's jobs are not confined", file=sys.stderr)
        of_site["cgroup"] = False
    values = DEFAULTS | of_site | given
    user, memory = values.pop("user"), values.pop("memory", 0)
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", options.name):
        raise MiniclusterError(
            f"--name {options.name!r}: take lower-case letters, digits, - and _ (at most 31)"
        )
    interface = values["interface"]
    if not re.fullmatch(r"[a-z][a-z0-9_.-]{0,14}", interface) or interface in ("eth0", "lo"):
        raise MiniclusterError(f"--interface {interface!r} cannot name a second interface")
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", user) or user in ("root", "second"):
        raise MiniclusterError(f"--user {user!r} cannot name the ordinary user")
    if not 1 <= values["nodes"] <= 64 or values["cpus"] < 1:
        raise MiniclusterError("--nodes is 1 to 64, --cpus at least 1")
    if "cpus" in given:
        values.pop("kinds", None)
    return Site.of(
        values
        | {
            "name": options.name,
            "folder": str(folder),
            "memory_mb": memory or max(1000, total_memory_mb() // values["nodes"]),
            "users": (user, "second"),
        }
    )


def require(packages: list[str]) -> None:
    if packages:
        raise MiniclusterError(
            f"missing {', '.join(packages)}: run `minicluster deps --install`, or "
            f"`apt-get install -y --no-install-recommends {' '.join(packages)}`"
        )


def check_dependencies(and_install: bool, site: Site | None) -> int:
    missing = missing_packages(site)
    if missing and and_install:
        install(missing)
        missing = missing_packages(site)
    if site and not missing:
        make_root(site.root)
    print(f"missing: {' '.join(missing)}" if missing else "nothing is missing")
    return 1 if missing else 0


def make_root(name: str) -> None:
    """Make a site's root folder, unless it has none, or it is there."""
    if not name:
        return
    if reason := why_not():
        raise MiniclusterError(f"the programs of another Debian cannot be used: {reason}")
    root_folder(name)


def run(options: argparse.Namespace) -> int:
    if options.command == "deps":
        named = argparse.Namespace(**dict.fromkeys((*DEFAULTS, "memory")), name="any", site=options.site)
        return check_dependencies(options.install, site_of(named, Path()) if options.site else None)
    if os.geteuid() != 0:
        raise MiniclusterError("must be run as root, to make namespaces (try sudo)")
    folder = (options.dir or Path(f"/var/lib/minicluster-{options.name}")).absolute()
    cluster = Cluster(folder)
    if options.command == "up":
        site = site_of(options, folder)
        require(missing_packages(site))
        make_root(site.root)
        cluster.up(site)
        print(f"{site.name}: {site.nodes} nodes are idle; home is {folder}/home/{site.users[0]}")
        return 0
    if options.command == "down":
        cluster.down()
        return 0
    if not cluster.is_up():
        raise MiniclusterError(
            f"no cluster is up in {folder}; `minicluster --name {options.name} up` boots one"
        )
    host = f"node{options.number}" if "number" in options else "login"
    if options.command in ("login", "node"):
        if host != "login":  # argparse puts options that follow the number into the remainder
            tail = command_parser()
            tail.add_argument("argv", nargs=argparse.REMAINDER)
            tail.parse_args(options.argv, namespace=options)
        user = options.user or cluster.site.users[0]
        if user not in ("root", *cluster.site.users):
            raise MiniclusterError(f"no user {user}; there are root, {', '.join(cluster.site.users)}")
        return cluster.run(host, user, options.argv or ["bash", "-l"])
    if options.command == "status":
        print(cluster.status())
    elif options.command == "kill":
        cluster.kill(host)
    elif options.command == "start":
        cluster.start(host)
    else:
        cluster.set_link(host, "down" if options.command == "cut" else "up", options.interface)
    return 0


def main() -> int:
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that an interrupted `up` cleans up
    os.umask(0o022)  # the users must be able to read what root makes here
    try:
        return run(parser().parse_args())
    except (MiniclusterError, OSError, RuntimeError, ValueError) as error:
        print(f"minicluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
