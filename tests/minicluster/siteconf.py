"""The configuration of a cluster: an immutable `Site`, and pure functions that make the files of /etc from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

# Debian leaves 60000-64999 to packages that allocate on demand: no real user of the host has these.
FIRST_UID = 61001
NETWORKS = {
    "eth0": "10.77.0",
    "ib0": "10.78.0",
}  # not routed out of the cluster, so they cannot conflict with other networks
LOGIN_HOST_NUMBER = 254
SFTP_PORT = 5000  # plus the user's index
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CGROUP_CONTROLLERS = ("memory", "freezer")  # of cgroup v1: what task/cgroup and proctrack/cgroup use
SLURM_CONF = "/etc/slurm/slurm.conf"


@dataclass(frozen=True)
class Site:
    name: str
    folder: str
    nodes: int
    cpus: int
    memory_mb: int
    shared_fs: str
    interface: str
    users: tuple[str, ...]
    cgroup: bool

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Site:
        fields = json.loads(text)
        return cls(**{**fields, "users": tuple(fields["users"])})

    def node_names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    def host_names(self) -> list[str]:
        return ["login", *self.node_names()]

    def interfaces(self) -> dict[str, str]:
        """Return the first three numbers of each interface's addresses."""
        return {"eth0": NETWORKS["eth0"], self.interface: NETWORKS["ib0"]}

    def host_number(self, host: str) -> int:
        return LOGIN_HOST_NUMBER if host == "login" else int(host.removeprefix("node"))

    def uid(self, user: str) -> int:
        return 0 if user == "root" else FIRST_UID + self.users.index(user)

    def home(self, user: str) -> str:
        return "/root" if user == "root" else f"/home/{user}"


def hosts_file(site: Site) -> str:
    lines = ["127.0.0.1 localhost"]
    for interface, network in site.interfaces().items():
        for host in site.host_names():
            alias = host if interface == "eth0" else f"{host}-{interface}"
            lines.append(f"{network}.{site.host_number(host)} {alias}")
    return "\n".join(lines) + "\n"


def account_file(host_file: str, site: Site, template: str) -> str:
    """Return the host's passwd or group file with the cluster's users in it, in place of any of the same name."""
    kept = [line for line in host_file.splitlines() if line.partition(":")[0] not in site.users]
    ours = [template.format(user=user, uid=site.uid(user)) for user in site.users]
    return "\n".join([*kept, *ours]) + "\n"


PASSWD_LINE = "{user}:x:{uid}:{uid}:minicluster:/home/{user}:/bin/bash"
GROUP_LINE = "{user}:x:{uid}:"


def slurm_conf(site: Site) -> str:
    """Return slurm.conf (slurm.conf(5), 22.05). Waits are short, since tests wait for them."""
    names = f"node[1-{site.nodes}]"
    tracking = "cgroup" if site.cgroup else "linuxproc"
    return f"""\
ClusterName={site.name}
SlurmctldHost=login
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits as long as a credential lives; 120 s by default.
AuthInfo=cred_expire=30
MailProg=/bin/true
MpiDefault=none

StateSaveLocation=/run/slurmctld
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
SlurmctldDebug=info
SlurmdDebug=info

# Nodes claim more than the host has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ProctrackType=proctrack/{tracking}
TaskPlugin=task/{"cgroup" if site.cgroup else "none"}
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none

SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
# Slurm soon marks a killed node as down, and as idle as soon as it is back.
ReturnToService=2
SlurmdTimeout=15
MessageTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=300
CompleteWait=0
# A job that no node of the partition may ever run is refused when it is submitted.
EnforcePartLimits=ALL

NodeName={names} CPUs={site.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={site.cpus} ThreadsPerCore=1 \
RealMemory={site.memory_mb} State=UNKNOWN
PartitionName=DEFAULT Nodes={names} State=UP MaxTime=INFINITE DefaultTime=30 DefMemPerCPU={site.memory_mb // site.cpus}
PartitionName=multiple MinNodes=2 Default=YES
PartitionName=single MaxNodes=1
"""


def cgroup_conf(site: Site) -> str:
    """Return cgroup.conf(5). It does not constrain cores: nodes claim more than the machine has."""
    limits = "ConstrainRAMSpace=yes\nConstrainSwapSpace=yes\nAllowedSwapSpace=0\n" if site.cgroup else ""
    return f"CgroupPlugin=cgroup/v1\n{limits}"


def etc_files(site: Site) -> dict[str, str]:
    """Return the files that the cluster's /etc has instead of the machine's: text by path below /etc."""
    return {
        "hosts": hosts_file(site),
        "passwd": account_file(Path("/etc/passwd").read_text(), site, PASSWD_LINE),
        "group": account_file(Path("/etc/group").read_text(), site, GROUP_LINE),
        "slurm/slurm.conf": slurm_conf(site),
        "slurm/cgroup.conf": cgroup_conf(site),
    }


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
