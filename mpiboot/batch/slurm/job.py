"""Reads the allocation of the job that this process runs in: from the job's own record, which `scontrol` prints.

Variables count only where they agree with the record: a job that is submitted inside another one inherits that job's.

`allocation` imports this module; `record` parses what scontrol prints.
"""

import contextlib
import logging
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mpiboot.batch.allocation import Allocation, Node, Run
from mpiboot.batch.slurm import record as records
from mpiboot.batch.slurm.text import find_word, slurm_time, step_environment
from mpiboot.common.names import show_names
from mpiboot.common.units import show_duration
from mpiboot.errors import AllocationError, BatchAwayError, BatchError, UsageError

logger = logging.getLogger(__name__)

# Boot's step and the ranks' step run at the same time in all of the job's memory (--overlap, --mem=0), with boot's
# environment.
SRUN = ("srun", "--overlap", "--mem=0", "--export=ALL")
# The start of a step may wait for a slow node.
TIMEOUT_S = 60.0
# Slurm prints whole seconds, and its answer takes a moment.
CLOCK_TOLERANCE_S = 5.0
# slurmd sets it, in every program that it starts.
NODE_NAME = "SLURMD_NODENAME"


def read_job(environ: Mapping[str, str], run: Run) -> Allocation:
    """Return the job's allocation.

    Raises
    ------
    AllocationError
        The job has no nodes, or this process does not run on the first of them.
    UsageError
        The job is a part of several.
    BatchError
        Slurm does not answer.
    """
    job_id = environ["SLURM_JOB_ID"]
    record = records.job_record(read_record(environ, run, job_id))
    refuse_unfit(record, job_id)
    names = records.expand_nodes((find_word(record, "NodeList") or "").replace("(null)", ""))
    if not names:
        raise AllocationError(
            f"job {job_id} has no nodes; Slurm says that it is {find_word(record, 'JobState')}",
            "Start mpiboot from the job script: mpiboot jobscript slurm > slurm.sh && sbatch slurm.sh",
        )
    facts = read_facts(environ, run, names)
    first = first_node(record, names)
    refuse_wrong_place(environ, run, job_id, names, first, facts)
    parts = shares(environ, record, names)
    nodes = [node_of(name, record, parts[name], facts.get(name)) for name in names]
    tasks = records.tasks_per_node(record, task_counts(environ), [node.cpus for node in nodes])
    nodes = [
        replace(node, tasks=tasks[i] if tasks else records.most_tasks(record, parts[name], facts.get(name)))
        for i, (name, node) in enumerate(zip(names, nodes, strict=True))
    ]
    per_task = records.number(record, "CPUs/Task", 1)
    return Allocation(
        batch_system="slurm",
        job_id=job_id,
        job_key=f"slurm-{environ.get('SLURM_CLUSTER_NAME', 'cluster')}-{job_id}",
        nodes=tuple(sorted(nodes, key=lambda node: node.name != first)),
        cpus_per_task=per_task if per_task > 1 else None,
        end_time=local_end_time(record, environ, run),
        restart_count=records.number(record, "Restarts", 0),
    )


def read_record(environ: Mapping[str, str], run: Run, job_id: str) -> str:
    """Return the job's record, with what the job has on each node if Slurm shows that.

    Where a site hides its nodes from users (slurm.conf(5), PrivateData), `scontrol --details` of 22.05 crashes.
    """
    try:
        return run_scontrol(run, environ, "show", "job", "--details", "--oneliner", job_id)
    except BatchAwayError:
        raise
    except BatchError:
        return run_scontrol(run, environ, "show", "job", "--oneliner", job_id)


def first_node(record: str, names: Sequence[str]) -> str:
    """Return the node that the job script runs on.

    It is not the first of the list's if Slurm orders nodes by their switches, or with `sbatch --batch`.
    """
    host = find_word(record, "BatchHost")
    return host if host and host in names else names[0]


def run_scontrol(run: Run, environ: Mapping[str, str], *arguments: str) -> str:
    """Return the output of `scontrol ARGUMENTS`."""
    return run(["scontrol", *arguments], environ=step_environment(environ), timeout_s=TIMEOUT_S)


def refuse_unfit(record: str, job_id: str) -> None:
    """Refuse a job that is a part of several.

    Raises
    ------
    UsageError
        The job is a task of an array, or a component of a heterogeneous job.
    """
    if array := find_word(record, "ArrayJobId"):
        raise UsageError(
            f"job {job_id} is a task of the array {array}, and mpiboot makes one cluster of one job",
            f"Submit again without --array, and end the array: scancel {array}",
        )
    # Before Slurm 20.02 they were called packs.
    if whole := find_word(record, "HetJobId") or find_word(record, "PackJobId"):
        raise UsageError(
            f"job {job_id} is a component of the heterogeneous job {whole}, and mpiboot makes one cluster of one job",
            f"Submit again without `:`, and end this one: scancel {whole}",
        )


def refuse_wrong_place(
    environ: Mapping[str, str],
    run: Run,
    job_id: str,
    names: Sequence[str],
    first: str,
    facts: Mapping[str, records.NodeFacts],
) -> None:
    """Refuse to boot elsewhere than on the job's first node, and in several processes at once.

    Parameters
    ----------
    environ : mapping
        The environment of boot.
    run : callable
        Runs a command.
    job_id : str
        The job.
    names : sequence of str
        The job's nodes.
    first : str
        The node that the job script runs on.
    facts : mapping of str to NodeFacts
        Slurm's description of the nodes.

    Raises
    ------
    AllocationError
        This is another node of the job, or none; or srun has started several boots. The remedy is a command that starts
        boot where it belongs.
    """
    again = [*SRUN, "--jobid", job_id, "--nodes=1", "--ntasks=1", "--nodelist", first, "--cpu-bind=none"]
    boot = [sys.executable, "-I", "-m", "mpiboot", *sys.argv[1:]]
    there = f"In an existing allocation, start it there: {shlex.join([*again, *boot])}"
    tasks = tasks_of_step(environ, run, job_id)
    if tasks > 1:
        if environ.get("SLURM_PROCID") != "0":
            sys.exit(AllocationError.exit_status)  # one message is enough
        raise AllocationError(
            f"srun has started the job script {tasks} times, and mpiboot boots once, on the job's first node",
            f"Submit the script with sbatch. {there}",
        )
    here = socket.gethostname()
    node = own_node(environ, here, names, facts)
    if node is None:
        raise AllocationError(
            f"{here} is not a node of job {job_id}; mpiboot boots on the job's first node, {first}",
            f"Submit the script with sbatch. {there}",
        )
    if node != first:
        raise AllocationError(
            f"{node} is not the first node of job {job_id}, and mpiboot boots on that one, {first}",
            f"Submit the script with sbatch. {there}",
        )


def tasks_of_step(environ: Mapping[str, str], run: Run, job_id: str) -> int:
    """Return the number of tasks of the step that this process runs in; 1 in a batch script.

    A job that was submitted in a step has inherited that step's variables, so Slurm is asked for the step.
    """
    step = environ.get("SLURM_STEP_ID", "")
    if not step.isdigit() or environ.get("SLURM_STEP_NUM_TASKS") == "1":
        return 1
    with contextlib.suppress(BatchError):
        return int(find_word(run_scontrol(run, environ, "show", "step", f"{job_id}.{step}"), "Tasks") or 1)
    return 1


def own_node(
    environ: Mapping[str, str], host: str, names: Sequence[str], facts: Mapping[str, records.NodeFacts]
) -> str | None:
    """Return which of the nodes this host is; None if it is none of them.

    Slurm names a node to the programs that it starts there; a shell that somebody opens there knows the host alone.
    """
    if (name := environ.get(NODE_NAME)) in names:
        return name
    short = host.partition(".")[0]
    hosts = {name: facts[name].host_name if name in facts else name for name in names}
    return next((name for name, its_host in hosts.items() if its_host.partition(".")[0] == short), None)


def read_facts(environ: Mapping[str, str], run: Run, names: Sequence[str]) -> dict[str, records.NodeFacts]:
    """Return Slurm's description of the nodes; {} where a site hides it (slurm.conf(5), PrivateData)."""
    try:
        return records.node_facts(run_scontrol(run, environ, "show", "node", "--oneliner", ",".join(names)))
    except BatchError as error:
        logger.warning("Slurm does not describe the job's nodes: %s", error)
        return {}


def shares(environ: Mapping[str, str], record: str, names: Sequence[str]) -> dict[str, records.Share]:
    """Return what the job has on each node.

    Raises
    ------
    AllocationError
        Slurm does not tell.
    """
    found = records.shares(record)
    if not found:  # select/linear does not count cores; or the record has no details
        cpus = records.compressed_counts(environ.get("SLURM_JOB_CPUS_PER_NODE", ""))
        found = {name: records.Share(count, 0, "") for name, count in zip(names, cpus, strict=False)}
    if set(found) != set(names):
        raise AllocationError(
            f"Slurm names {len(names)} nodes ({show_names(names)}), and what the job has on {show_names(list(found))}",
            "Show this to the administrators: scontrol show job --details "
            f"{find_word(record, 'JobId') or ''}".rstrip(),
        )
    return {name: found[name] for name in names}


def node_of(name: str, record: str, share: records.Share, facts: records.NodeFacts | None) -> Node:
    """Return a node of the allocation.

    A site may count cores as CPUs; the job has their threads all the same.
    """
    per_core = facts.threads_per_core if facts else 1
    cpus = records.usable_threads(share.threads, per_core, records.threads_per_core_asked(record))
    # Where Slurm does not allot memory, it limits a job to what was asked for.
    asked = (
        records.memory_bytes(find_word(record, "MinMemoryNode"))
        or records.memory_bytes(find_word(record, "MinMemoryCPU")) * cpus
    )
    return Node(
        name=name,
        cpus=cpus,
        memory_bytes=share.memory_bytes or asked or None,
        given_cpus=share.threads,
        threads_per_core=per_core,
        devices=share.devices,
        total_cpus=facts.threads if facts else None,
        total_memory_bytes=facts.memory_bytes or None if facts else None,
    )


def task_counts(environ: Mapping[str, str]) -> list[int] | None:
    """Return the tasks per node as in the job's variables."""
    with contextlib.suppress(KeyError, AllocationError):
        return records.compressed_counts(environ["SLURM_TASKS_PER_NODE"])
    return None


def local_end_time(record: str, environ: Mapping[str, str], run: Run) -> float | None:
    """Return when slurmctld ends the job, by the clock of this host; None if the job has no time limit."""
    end_time = slurm_time(find_word(record, "EndTime"))
    return None if end_time is None else end_time - clock_lead_s(environ, run)


def clock_lead_s(environ: Mapping[str, str], run: Run) -> float:
    """Return by how many seconds slurmctld's clock is ahead of this host's; 0 for a difference that does not matter."""
    try:
        first_line = run_scontrol(run, environ, "show", "config").partition("\n")[0]
    except BatchError:
        return 0.0
    # "Configuration data as of 2026-11-22T10:00:00": slurmctld's time.
    lead_s = (slurm_time(first_line.rpartition(" ")[2]) or time.time()) - time.time()
    if abs(lead_s) < CLOCK_TOLERANCE_S:
        return 0.0
    logger.warning(
        "slurmctld's clock is %s %s this host's; the job's end is reckoned by slurmctld's",
        show_duration(abs(lead_s)),
        "ahead of" if lead_s > 0 else "behind",
    )
    return lead_s
