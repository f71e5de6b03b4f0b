"""The files of a cluster's /etc/slurm, made from its `Site`. Pure functions."""

from __future__ import annotations

from siteconf import Site

SLURMDBD_CONF = "slurmdbd.conf"
SLURMDBD_TEXT = """\
AuthType=auth/munge
DbdHost=login
SlurmUser=root
PidFile=/run/slurmdbd.pid
LogFile=/var/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""
GPU_DEVICE = "/run/gpu"  # and a number
JOB_TMP_BASE = "/run/job_tmp"
SRUN_PORTS = "50000-50100"


def slurm_files(site: Site) -> dict[str, str]:
    """Return the files by their path below /etc."""
    files = {"slurm.conf": slurm_conf(site), "cgroup.conf": cgroup_conf(site)}
    if site.gpus:
        files["gres.conf"] = f"Name=gpu File={GPU_DEVICE}[0-{site.gpus - 1}]\n"
    if site.job_tmp_mb:
        files["job_container.conf"] = f"AutoBasePath=true\nBasePath={JOB_TMP_BASE}\n"
    if site.accounting:
        files[SLURMDBD_CONF] = SLURMDBD_TEXT
    return {f"slurm/{name}": text for name, text in files.items()}


def slurm_conf(site: Site) -> str:
    """Return slurm.conf (slurm.conf(5), 22.05). Waits are short, since tests wait for them."""
    names = f"node[1-{site.nodes}]"
    tracking = "cgroup" if site.cgroup else "linuxproc"
    lines = f"""\
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
JobAcctGatherType=jobacct_gather/none

SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
# Slurm soon marks a killed node as down, and as idle as soon as it is back.
ReturnToService=2
SlurmdTimeout=15
MessageTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge={site.min_job_age_s}
CompleteWait=0
# A job that no node of the partition may ever run is refused when it is submitted.
EnforcePartLimits=ALL
""".splitlines()
    lines.append(f"AccountingStorageType=accounting_storage/{'slurmdbd' if site.accounting else 'none'}")
    if site.accounting:
        lines.append("AccountingStorageHost=login")
    if site.contain:
        lines.append("PrologFlags=Contain")
    if site.job_tmp_mb:
        lines.append("JobContainerType=job_container/tmpfs")
    if site.gpus:
        lines.append("GresTypes=gpu")
    if site.open_ports:
        lines.append(f"SrunPortRange={SRUN_PORTS}")
    lines += [node_line(site, node) for node in site.node_names()]
    lines += [
        f"PartitionName=DEFAULT Nodes={names} State=UP MaxTime=INFINITE DefaultTime=30 "
        f"DefMemPerCPU={site.default_mem_per_cpu_mb or site.memory_mb // site.cpus}",
        "PartitionName=multiple MinNodes=2 Default=YES",
        "PartitionName=single MaxNodes=1",
    ]
    return "\n".join(lines) + "\n"


def node_line(site: Site, node: str) -> str:
    kind = site.kind(node)
    words = [f"NodeName={node}"]
    if site.domain:
        words += [f"NodeHostname={site.short_hostname(node)}", f"NodeAddr={site.hostname(node)}"]
    words += [
        f"CPUs={kind.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={kind.cpus // site.threads_per_core}",
        f"ThreadsPerCore={site.threads_per_core} RealMemory={int(site.memory_mb * kind.memory_share)}",
    ]
    if site.gpus:
        words.append(f"Gres=gpu:{site.gpus}")
    return " ".join([*words, "State=UNKNOWN"])


def cgroup_conf(site: Site) -> str:
    """Return cgroup.conf(5). By default it does not confine cores: nodes claim more than the machine has."""
    limits = "ConstrainRAMSpace=yes\nConstrainSwapSpace=yes\nAllowedSwapSpace=0\n" if site.cgroup else ""
    cores = "ConstrainCores=yes\n" if site.cgroup and site.confine_cores else ""
    plugin = "CgroupPlugin=cgroup/v1\n" if site.slurm > "20.11" else ""  # which had no other
    return f"{plugin}{limits}{cores}"
