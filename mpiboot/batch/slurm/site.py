"""What `mpiboot doctor` says of a Slurm site: commands, and functions that read their output. `submission` imports it."""

import re

# By the name of the fact. One line per kind of node, whatever the number of partitions: sinfo(1).
COMMANDS = {
    "nodes": ["sinfo", "--noheader", "--exact", "--format=%D|%c|%z|%m|%G"],
    "settings": ["scontrol", "show", "config"],
}


def describe(name: str, output: str) -> str:
    """Return the fact for the output of its command."""
    return node_kinds(output) if name == "nodes" else settings(output)


def node_kinds(output: str) -> str:
    """Return each kind of node, as in `2 of 8 CPUs (4 cores of 2 threads), 12052 MB, gpu:2`."""
    kinds = []
    for line in output.splitlines():
        count, cpus, layout, memory, devices = line.split("|")
        sockets, cores, threads = layout.split(":")
        smt = f" ({int(sockets) * int(cores)} cores of {threads} threads)" if threads != "1" else ""
        has = "" if devices == "(null)" else f", {devices}"
        kinds.append(f"{count} of {cpus} CPUs{smt}, {memory} MB{has}")
    return "; ".join(kinds)


def settings(output: str) -> str:
    """Return the settings that change what a job finds on its nodes, or what is known of it later."""
    values = dict(re.findall(r"^(\w+)\s*= (.*)$", output, re.MULTILINE))
    facts = []
    if values.get("JobContainerType", "").endswith("tmpfs"):
        facts.append("each job has its own /tmp, so none uses another's staged copy")
    if "cgroup" in values.get("TaskPlugin", ""):
        facts.append("cgroups confine each job")
    if values.get("AccountingStorageType", "").endswith("slurmdbd"):
        facts.append("slurmdbd remembers ended jobs")
    else:
        facts.append(f"ended jobs are forgotten after {values.get('MinJobAge', 'some time')}")
    if values.get("SrunPortRange", "0-0") != "0-0":
        facts.append(f"srun listens on ports {values['SrunPortRange']}")
    return "; ".join(facts)
