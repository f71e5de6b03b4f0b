"""The configuration of a cluster: an immutable `Site`, read from its data file; the accounts and names in its /etc."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SITES = Path(__file__).resolve().parent / "sites"
# Debian leaves 60000-64999 to packages that allocate on demand: no real user of the host has these.
FIRST_UID = 61001
# Not routed out of the cluster, so they cannot conflict with other networks. More interfaces have 10.79.0, 10.80.0, …
NETWORKS = {"eth0": "10.77.0", "ib0": "10.78.0"}
LOGIN_HOST_NUMBER = 254
SFTP_PORT = 5000  # plus the user's index
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CGROUP_CONTROLLERS = ("memory", "freezer", "cpuset")  # of cgroup v1
SLURM_CONF = "/etc/slurm/slurm.conf"
SCRATCH = "/mnt"  # shared, and can be written to from every host, where homes cannot


@dataclass(frozen=True)
class Kind:
    """Nodes of one generation."""

    cpus: int
    memory_share: float = 1.0


@dataclass(frozen=True)
class Site:
    """A cluster, and in what it differs from others. The fields from `site` on are the keys of sites/NAME.toml.

    Attributes
    ----------
    cgroup : bool
        Slurm enforces memory limits with the machine's cgroup v1.
    site : str
        Name of the data file.
    root : str
        Key of roots.ROOTS: the hosts have the programs of another Debian; empty: this machine's.
    slurm : str
        Its version of Slurm, whose configuration it gets: YY.MM.
    kinds : tuple of Kind
        The nodes are of these kinds in turn; () if all have `cpus` CPUs and the whole of `memory_mb`.
    threads_per_core : int
        Threads (CPUs) of each core.
    more_interfaces : int
        Interfaces of each host beside `eth0` and the fast one, each in a network of its own.
    domain : str
        Hosts are called `cnK.DOMAIN`, while Slurm calls the nodes `nodeK`, a name that nothing resolves.
    default_mem_per_cpu_mb : int
        Slurm's DefMemPerCPU; 0: each CPU's share of its node.
    gpus : int
        GPUs that each node claims to have.
    umask : str
        The users' umask on the login node, in octal digits; Slurm gives it to their jobs.
    home_on_nodes : str
        `rw`, or `ro`: read-only there; /mnt/USER is then a shared folder that can be written to.
    contain : bool
        PrologFlags=Contain.
    job_tmp_mb : int
        Size of the private /tmp that each job has (job_container/tmpfs); 0: one /tmp for all.
    confine_cores : bool
        With `cgroup`: jobs run on their own cores. Nodes must not claim more than the machine has.
    login_limits : dict[str, int]
        Soft limits of the users' processes on the login node: value by name, as in resource.RLIMIT_NAME.
    accounting : bool
        slurmdbd with a database, on the login node.
    min_job_age_s : int
        Slurm forgets a job so long after its end.
    login_on_fast_network : bool
        Whether the login node has the fast interface.
    open_ports : str
        `LOW-HIGH`: hosts take connections on these TCP ports alone, and on Slurm's own; empty: on all.
    proxy_port : int
        Port of a proxy on the login node that sends another Host header (hostproxy.py); 0: none.
    """

    name: str
    folder: str
    nodes: int
    cpus: int
    memory_mb: int
    shared_fs: str
    interface: str
    users: tuple[str, ...]
    cgroup: bool
    site: str = "plain"
    root: str = ""
    slurm: str = "22.05"
    kinds: tuple[Kind, ...] = ()
    threads_per_core: int = 1
    more_interfaces: int = 0
    domain: str = ""
    default_mem_per_cpu_mb: int = 0
    gpus: int = 0
    umask: str = "0022"
    home_on_nodes: str = "rw"
    contain: bool = False
    job_tmp_mb: int = 0
    confine_cores: bool = False
    login_limits: dict[str, int] = field(default_factory=dict)
    accounting: bool = False
    min_job_age_s: int = 300
    login_on_fast_network: bool = True
    open_ports: str = ""
    proxy_port: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Site:
        return cls.of(json.loads(text))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Site:
        """Make a site of values as JSON or TOML has them."""
        kinds = tuple(Kind(**kind) for kind in values.get("kinds", ()))
        return cls(**{**values, "users": tuple(values["users"]), "kinds": kinds})

    def node_names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    def host_names(self) -> list[str]:
        return ["login", *self.node_names()]

    def short_hostname(self, host: str) -> str:
        return host.replace("node", "cn") if self.domain else host

    def hostname(self, host: str) -> str:
        """Return what hostname(1) says on a host."""
        return f"{self.short_hostname(host)}.{self.domain}" if self.domain else host

    def kind(self, node: str) -> Kind:
        kinds = self.kinds or (Kind(self.cpus),)
        return kinds[(self.host_number(node) - 1) % len(kinds)]

    def cgroup_controllers(self) -> tuple[str, ...]:
        """Return those of cgroup v1 that task/cgroup and proctrack/cgroup use."""
        confining = CGROUP_CONTROLLERS if self.confine_cores else CGROUP_CONTROLLERS[:2]
        return confining if self.cgroup else ()

    def interfaces(self, host: str = "node1") -> dict[str, str]:
        """Return the first three numbers of the address of each of a host's interfaces."""
        fast = {} if host == "login" and not self.login_on_fast_network else {self.interface: NETWORKS["ib0"]}
        more = {f"eth{number}": f"10.{78 + number}.0" for number in range(1, self.more_interfaces + 1)}
        return {"eth0": NETWORKS["eth0"], **fast, **more}

    def host_number(self, host: str) -> int:
        return LOGIN_HOST_NUMBER if host == "login" else int(host.removeprefix("node"))

    def uid(self, user: str) -> int:
        return 0 if user == "root" else FIRST_UID + self.users.index(user)

    def home(self, user: str) -> str:
        return "/root" if user == "root" else f"/home/{user}"


def hosts_file(site: Site) -> str:
    lines = ["127.0.0.1 localhost"]
    for host in site.host_names():
        names = dict.fromkeys([site.hostname(host), site.short_hostname(host)])
        for interface, network in site.interfaces(host).items():
            aliases = names if interface == "eth0" else [f"{site.short_hostname(host)}-{interface}"]
            lines.append(f"{network}.{site.host_number(host)} {' '.join(aliases)}")
    return "\n".join(lines) + "\n"


def account_file(host_file: str, site: Site, template: str) -> str:
    """Return the host's passwd or group file with the cluster's users in it, in place of any of the same name."""
    kept = [line for line in host_file.splitlines() if line.partition(":")[0] not in site.users]
    ours = [template.format(user=user, uid=site.uid(user)) for user in site.users]
    return "\n".join([*kept, *ours]) + "\n"


def read_site(name: str) -> dict[str, Any]:
    """Return the fields of `Site` that sites/NAME.toml sets.

    Raises
    ------
    ValueError
        There is no such site, or it has an unknown key.
    """
    import tomllib  # Python 3.11

    path = SITES / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(site.stem for site in SITES.glob("*.toml")))
        raise ValueError(f"no site {name}; there are {known}")
    values = tomllib.loads(path.read_text())
    unknown = values.keys() - {field.name for field in fields(Site)}
    if unknown:
        raise ValueError(f"{path}: unknown keys {', '.join(sorted(unknown))}")
    return {**values, "site": name}


PASSWD_LINE = "{user}:x:{uid}:{uid}:minicluster:/home/{user}:/bin/bash"
GROUP_LINE = "{user}:x:{uid}:"


def etc_files(site: Site) -> dict[str, str]:
    """Return the files that the cluster's /etc has instead of the machine's: text by path below /etc."""
    return {
        "hosts": hosts_file(site),
        "passwd": account_file(Path("/etc/passwd").read_text(), site, PASSWD_LINE),
        "group": account_file(Path("/etc/group").read_text(), site, GROUP_LINE),
    }


def cgroup_v1(name: str, controller: str = "memory") -> Path:
    """Return the folder of a group of cgroup v1; the controller's root for an empty name."""
    return Path("/sys/fs/cgroup", controller, name)


def clean_environment(site: Site, user: str) -> dict[str, str]:
    return {
        "HOME": site.home(user),
        "USER": user,
        "LOGNAME": user,
        "SHELL": "/bin/bash",
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "SLURM_CONF": SLURM_CONF,
    }
