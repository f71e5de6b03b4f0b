"""What the batch system gave the job: nodes, CPUs, memory, end time; and the workers that fit in.

Read from the batch system's variables; where there is none, the batch system is asked. Ranks are MPI's alone
and never read from here. Standard library only.
"""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mpiboot.common.units import parse_walltime_s, show_size
from mpiboot.errors import AllocationError, UsageError

MIB = 1024**2
GIB = 1024**3
CPUS_PER_WORKER = 4
# A worker that holds no data takes about as much; its nanny would end one after the other.
LEAST_WORKER_BYTES = 64 * MIB


@dataclass(frozen=True)
class Allocation:
    """One job's share of the machine.

    `cpus_per_node` and `memory_per_node_bytes` are those of the smallest node; `memory_per_node_bytes` is None where
    the batch system set no limit. `tasks_per_node` and `cpus_per_task` are None unless the user asked for them.
    """

    batch_system: str
    job_id: str
    job_key: str
    nodes: tuple[str, ...]
    cpus_per_node: int
    memory_per_node_bytes: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    end_time: float | None = None
    restart_count: int = 0


@dataclass(frozen=True)
class Sizing:
    """Workers of every node alike; `memory_limit_bytes` is per worker."""

    workers_per_node: int
    threads_per_worker: int
    memory_limit_bytes: int


def check_min_workers(wanted: int, there: int) -> None:
    """Refuse what would end the job as soon as it is ready."""
    if wanted > there:
        raise UsageError(
            f"--min-workers {wanted}: the job has {there} workers at most. Ask for fewer, or for more nodes"
        )


def read(environ: Mapping[str, str], *, local: bool = False, walltime: str | None = None) -> Allocation:
    """The allocation of the job that this process runs in; `walltime` counts where no batch system keeps one.

    Raises
    ------
    AllocationError
        There is no job, or its variables make no sense.
    """
    if local:
        end_time = time.time() + parse_walltime_s(walltime) if walltime else None
        return replace(local_allocation(), end_time=end_time)
    if "SLURM_JOB_ID" in environ:
        return slurm_allocation(environ, scontrol)
    raise AllocationError(
        "this is no batch job: neither SLURM_JOB_ID nor another batch system's variables are set. "
        "Submit it: mpiboot submit, or by hand: mpiboot jobscript > slurm.sh && sbatch slurm.sh"
    )


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


def plain_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without what changes how Slurm's commands answer (squeue(1), sacct(1), environment variables)."""
    changing = ("SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SQUEUE_", "SACCT_")
    return {name: value for name, value in environ.items() if not name.startswith(changing)}


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


def end_time(allocation: Allocation) -> float | None:
    """When the job ends by what the batch system says now, in seconds since the epoch; None where it does not say."""
    if allocation.batch_system != "slurm":
        return None
    job = scontrol(["show", "job", "--oneliner", allocation.job_id])
    return slurm_time(find_word(job, "EndTime"))


def compressed_counts(text: str) -> list[int]:
    """`"8(x2),4"` is `[8, 8, 4]`, one count per node (sbatch(1), SLURM_TASKS_PER_NODE)."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise AllocationError(f"{text!r} is not a count per node as Slurm writes it, such as 8(x2),4")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def find_word(text: str, key: str) -> str | None:
    """The value of `key=value` in scontrol's words."""
    match = re.search(rf"(?:^|\s){key}=(\S*)", text)
    return match[1] if match else None


def slurm_memory_bytes(environ: Mapping[str, str], job: str, cpus: int) -> int | None:
    """The memory limit of the smallest node, or None where Slurm sets none (no `--mem` and no default)."""
    if per_node := int(environ.get("SLURM_MEM_PER_NODE") or 0):
        return per_node * MIB
    if per_cpu := int(environ.get("SLURM_MEM_PER_CPU") or 0):
        return per_cpu * cpus * MIB
    # `scontrol show job --details` names each group of nodes with its `Mem=` in MiB; 0 means no limit.
    found = [int(value) for value in re.findall(r"CPU_IDs=\S* Mem=(\d+)", job)]
    return min(found, default=0) * MIB or None


def slurm_time(text: str | None) -> float | None:
    """Seconds since the epoch of `2026-11-22T10:00:00` or of a number; None for `Unknown`."""
    if not text or not text[0].isdigit():
        return None
    return float(text) if text.isdigit() else time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def local_allocation() -> Allocation:
    """This host, as far as this process may use it."""
    host = socket.gethostname()
    job_id = f"{host}-{os.getpid()}-{process_start(os.getpid())}"
    return Allocation("local", job_id, f"local-{job_id}", (host,), len(os.sched_getaffinity(0)))


def process_start(pid: int) -> str | None:
    """A process's start in ticks since boot: with the pid it names a process for good. None: it has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] == "Z" else words[19]


def size_workers(
    allocation: Allocation,
    memory_per_node_bytes: int,
    workers_per_node: int | None,
    cpus_per_worker: int | None,
    stage_bytes: int = 0,
) -> Sizing:
    """Workers whose threads and memory together never exceed what the job was given on a node.

    Neither count given: one worker per 4 CPUs. The scheduler shares the first node: a tenth of the memory,
    at most 2 GiB, stays free for it, on every node alike, since all workers are given the same limit. So do
    `stage_bytes`, the stage's size where the staging root is memory.

    Raises
    ------
    UsageError
        More CPUs are asked for than a node of this job has, or its memory is too little for the workers.
    """
    cpus = allocation.cpus_per_node
    workers = workers_per_node or allocation.tasks_per_node
    threads = cpus_per_worker or allocation.cpus_per_task
    if workers is None:
        workers = max(1, cpus // (threads or CPUS_PER_WORKER))
    if threads is None:
        threads = max(1, cpus // workers)
    if workers * threads > cpus:
        raise UsageError(
            f"{workers} workers per node of {threads} CPUs each need {workers * threads} CPUs; "
            f"the job has {cpus} on {allocation.nodes[0]}. "
            f"Ask for more with sbatch's --cpus-per-task, or for fewer with --workers-per-node"
        )
    left = memory_per_node_bytes - stage_bytes
    limit = (left - min(2 * GIB, left // 10)) // workers
    if limit < LEAST_WORKER_BYTES:
        stage = f", of which the stage takes {show_size(stage_bytes)}," if stage_bytes else ""
        raise UsageError(
            f"{show_size(memory_per_node_bytes)} of memory per node{stage} are too little for {workers} workers. "
            "Ask for more with --mem"
        )
    return Sizing(workers, threads, limit)
