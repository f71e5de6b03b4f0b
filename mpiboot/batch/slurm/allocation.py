"""What Slurm gave the job, from sbatch's output environment and `scontrol show job`."""

import os
import re
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence

from mpiboot.batch.allocation import MIB, Allocation, Node
from mpiboot.batch.slurm.text import find_word, plain_environment, slurm_time
from mpiboot.errors import AllocationError, UsageError


def scontrol(arguments: Sequence[str]) -> str:
    """What `scontrol ARGUMENTS` prints."""
    try:
        done = subprocess.run(
            ["scontrol", *arguments],
            env=plain_environment(os.environ),
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AllocationError(f"scontrol {' '.join(arguments)} on {socket.gethostname()}: {error}") from error
    if done.returncode:
        raise AllocationError(f"scontrol {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def slurm_allocation(environ: Mapping[str, str], ask: Callable[[Sequence[str]], str]) -> Allocation:
    """A Slurm job's allocation, from the output environment of sbatch(1) and `scontrol show job`."""
    try:
        job_id, node_list = environ["SLURM_JOB_ID"], environ["SLURM_JOB_NODELIST"]
        cpus = compressed_counts(environ["SLURM_JOB_CPUS_PER_NODE"])
    except KeyError as error:
        raise AllocationError(
            f"SLURM_JOB_ID is set but {error} is not: start mpiboot from the job script"
        ) from error
    job = ask(["show", "job", "--details", "--oneliner", job_id])
    if array := find_word(job, "ArrayJobId"):
        raise UsageError(
            f"job {job_id} is a task of the array {array}, and mpiboot makes one cluster of one job. "
            f"End the array: scancel {array}; then submit without --array"
        )
    names = ask(["show", "hostnames", node_list]).split()
    # Slurm counts tasks where nobody asked for any, too.
    asked_tasks = "SLURM_NTASKS_PER_NODE" in environ or "SLURM_NTASKS" in environ
    tasks = compressed_counts(environ["SLURM_TASKS_PER_NODE"]) if asked_tasks else [None] * len(names)
    if not len(names) == len(cpus) == len(tasks):
        raise AllocationError(
            f"job {job_id}: Slurm names {len(names)} nodes ({node_list}), CPUs of {len(cpus)} "
            f"and tasks of {len(tasks)}. Show this to your Slurm's administrators: scontrol show job --details {job_id}"
        )
    memory = memory_limits(environ, job, dict(zip(names, cpus, strict=True)), ask)
    per_task = environ.get("SLURM_CPUS_PER_TASK")
    return Allocation(
        batch_system="slurm",
        job_id=job_id,
        job_key=f"slurm-{environ.get('SLURM_CLUSTER_NAME', 'cluster')}-{job_id}",
        nodes=tuple(
            Node(name, n_cpus, memory.get(name), n_tasks)
            for name, n_cpus, n_tasks in zip(names, cpus, tasks, strict=True)
        ),
        cpus_per_task=int(per_task) if per_task else None,
        end_time=slurm_time(environ.get("SLURM_JOB_END_TIME") or find_word(job, "EndTime")),
        restart_count=int(environ.get("SLURM_RESTART_COUNT", "0")),
    )


def compressed_counts(text: str) -> list[int]:
    """`"8(x2),4"` is `[8, 8, 4]`, one count per node (sbatch(1), SLURM_TASKS_PER_NODE)."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise AllocationError(f"{text!r} is not a count per node as Slurm writes it, such as 8(x2),4")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def memory_limits(
    environ: Mapping[str, str], job: str, cpus: Mapping[str, int], ask: Callable[[Sequence[str]], str]
) -> dict[str, int]:
    """The memory limit of each node in bytes; nodes for which Slurm sets none (no `--mem` and no default) are left out.

    Parameters
    ----------
    environ
        The job's environment.
    job
        `scontrol show job --details --oneliner`: it names each group of nodes with its `Mem=` in MiB (0: unlimited).
    cpus
        Each node's CPUs.
    ask
        Runs scontrol with arguments, and returns its output.
    """
    if per_node := int(environ.get("SLURM_MEM_PER_NODE") or 0):
        return dict.fromkeys(cpus, per_node * MIB)
    if per_cpu := int(environ.get("SLURM_MEM_PER_CPU") or 0):
        return {name: per_cpu * n_cpus * MIB for name, n_cpus in cpus.items()}
    groups = [(nodes, int(mib)) for nodes, mib in re.findall(r"\bNodes=(\S+) CPU_IDs=\S* Mem=(\d+)", job)]
    sizes = {mib for _, mib in groups}
    if len(sizes) <= 1:
        return dict.fromkeys(cpus, max(sizes) * MIB) if any(sizes) else {}
    limits: dict[str, int] = {}
    for nodes, mib in groups:
        names = ask(["show", "hostnames", nodes]).split() if re.search(r"[\[,]", nodes) else [nodes]
        limits |= dict.fromkeys(names, mib * MIB)
    return {name: limit for name, limit in limits.items() if limit}
