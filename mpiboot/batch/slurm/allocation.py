"""What Slurm gave the job, from sbatch's output environment and `scontrol show job`."""

import os
import re
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence

from mpiboot.batch.allocation import MIB, Allocation
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
    asked_tasks = "SLURM_NTASKS_PER_NODE" in environ or "SLURM_NTASKS" in environ
    per_task = environ.get("SLURM_CPUS_PER_TASK")
    return Allocation(
        batch_system="slurm",
        job_id=job_id,
        job_key=f"slurm-{environ.get('SLURM_CLUSTER_NAME', 'cluster')}-{job_id}",
        nodes=tuple(ask(["show", "hostnames", node_list]).split()),
        cpus_per_node=min(cpus),
        memory_per_node_bytes=slurm_memory_bytes(environ, job, min(cpus)),
        tasks_per_node=min(compressed_counts(environ["SLURM_TASKS_PER_NODE"])) if asked_tasks else None,
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


def slurm_memory_bytes(environ: Mapping[str, str], job: str, cpus: int) -> int | None:
    """The memory limit of the smallest node, or None where Slurm sets none (no `--mem` and no default)."""
    if per_node := int(environ.get("SLURM_MEM_PER_NODE") or 0):
        return per_node * MIB
    if per_cpu := int(environ.get("SLURM_MEM_PER_CPU") or 0):
        return per_cpu * cpus * MIB
    # `scontrol show job --details` names each group of nodes with its `Mem=` in MiB; 0 means no limit.
    found = [int(value) for value in re.findall(r"CPU_IDs=\S* Mem=(\d+)", job)]
    return min(found, default=0) * MIB or None
