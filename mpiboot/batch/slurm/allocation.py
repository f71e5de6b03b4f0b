"""Slurm, as used inside a job: reads the allocation from sbatch's output environment and scontrol, and builds the
commands of srun, sbcast and scancel.

Boot finds `SYSTEM` by the batch system's name; it imports what boot may import at its start.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mpiboot.batch.allocation import Allocation, AllocationSystem, Launch, Node, Placement, Run
from mpiboot.batch.slurm.text import find_word, plain_environment, slurm_time
from mpiboot.errors import AllocationError, BatchAwayError, BatchError, UsageError

MIB = 1024**2
# Boot's step and the ranks' step run at the same time in all of the job's memory (--overlap, --mem=0), with boot's
# environment.
SRUN = ("srun", "--overlap", "--mem=0", "--export=ALL")
# The start of a step may wait for a slow node.
TIMEOUT_S = 60.0


class SlurmAllocation(AllocationSystem):
    """Slurm 20.11 and later.

    Boot and agents rely on these limits: SIGKILL follows SIGTERM after KillWait (slurm.conf(5): 30 s by default; a site
    may set less); the signal of `--signal` may come up to 60 s early (sbatch(1)); srun keeps lines of up to 1024 bytes
    intact (src/common/io_hdr.h, MAX_MSG_LEN).
    """

    several_hosts = True
    # Strangers on srun's ports can end it: after eight bytes of 0xff on its message port, or when they leave at last,
    # srun 22.05 and its shepherd end, and kill the step. So does a SIGKILL of srun; a SIGSTOP keeps both off.
    stop_start = True
    node_variable = "SLURMD_NODENAME"
    # `sbatch --export=NONE` sets it, and then no variable reaches srun's steps.
    unset_variables = ("SLURM_EXPORT_ENV",)

    def read(self, environ: Mapping[str, str], run: Run) -> Allocation:
        """Return the job's allocation, from the output environment of sbatch(1) and `scontrol show job`."""

        def host_names(node_list: str) -> list[str]:
            return run_scontrol(run, environ, "show", "hostnames", node_list).split()

        try:
            job_id, node_list = environ["SLURM_JOB_ID"], environ["SLURM_JOB_NODELIST"]
            cpus = compressed_counts(environ["SLURM_JOB_CPUS_PER_NODE"])
        except KeyError as error:
            raise AllocationError(
                f"SLURM_JOB_ID is set but {error} is not", "Start mpiboot from the job script"
            ) from error
        job = run_scontrol(run, environ, "show", "job", "--details", "--oneliner", job_id)
        if array := find_word(job, "ArrayJobId"):
            raise UsageError(
                f"job {job_id} is a task of the array {array}, and mpiboot makes one cluster of one job",
                f"Submit again without --array, and end the array: scancel {array}",
            )
        names = host_names(node_list)
        # Slurm sets a number of tasks even if the user did not ask for tasks.
        user_asked = "SLURM_NTASKS_PER_NODE" in environ or "SLURM_NTASKS" in environ
        tasks = compressed_counts(environ["SLURM_TASKS_PER_NODE"]) if user_asked else [None] * len(names)
        if not len(names) == len(cpus) == len(tasks):
            raise AllocationError(
                f"job {job_id}: Slurm names {len(names)} nodes ({node_list}), CPUs of {len(cpus)} and tasks of "
                f"{len(tasks)}",
                f"Show this to the administrators: scontrol show job --details {job_id}",
            )
        memory = memory_limits(environ, job, dict(zip(names, cpus, strict=True)), host_names)
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

    def end_time(self, job_id: str, run: Run) -> float | None:
        job = run_scontrol(run, os.environ, "show", "job", "--oneliner", job_id)
        return slurm_time(find_word(job, "EndTime"))

    def on_every_node(self, allocation: Allocation, command: Sequence[str]) -> list[str]:
        count = str(len(allocation.nodes))
        # Stagers and ranks run in this step, which must have all of the job's CPUs if Slurm confines steps. If nodes
        # differ, no single count fits; srun's default does.
        cpus = ("--cpus-per-task", str(allocation.least_cpus)) if allocation.equal_cpus else ()
        return [
            *SRUN,
            *("--nodes", count, "--ntasks", count, "--ntasks-per-node", "1"),
            *cpus,
            # The failure of one node must neither end the agents of the others nor hide their answers.
            *("--cpu-bind=none", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"),
            *command,
        ]

    def cancel_command(self, job_id: str) -> list[str]:
        return ["scancel", job_id]

    def carry_command(self, source: Path, target: Path) -> list[str]:
        """Return an sbcast(1) command: the nodes' daemons copy the file to each other in a tree."""
        return ["sbcast", "--force", str(source), str(target)]

    def launch(self, place: Placement, host_file: Path, rank: Sequence[str], run: Run) -> Launch:
        """Return how srun(1) starts ranks; a file with one line per rank sets their nodes (`--distribution`)."""
        command = [
            *SRUN,
            *(f"--mpi={pmi_plugin(run)}", f"--ntasks={place.world_size}", f"--nodes={len(place.nodes)}"),
            *("--distribution=arbitrary", "--overcommit", "--cpu-bind=none"),
            *("--no-kill", "--kill-on-bad-exit=0"),
            *rank,
        ]
        lines = [f"{node}\n" * ranks for node, ranks in zip(place.nodes, place.ranks_per_node, strict=True)]
        return Launch(command, "".join(lines), {"SLURM_HOSTFILE": str(host_file)})


SYSTEM = SlurmAllocation()


def run_scontrol(run: Run, environ: Mapping[str, str], *arguments: str) -> str:
    """Return the output of `scontrol ARGUMENTS`."""
    return run(["scontrol", *arguments], environ=plain_environment(environ), timeout_s=TIMEOUT_S)


def pmi_plugin(run: Run) -> str:
    """Return the plugin for `srun --mpi`: PMIx serves every MPI, but Slurm also lists one that it cannot load."""
    try:
        run([*SRUN, "--mpi=pmix", "--nodes=1", "--ntasks=1", "true"], timeout_s=TIMEOUT_S)
    except BatchAwayError:
        raise
    except BatchError:
        return "pmi2"
    return "pmix"


def compressed_counts(text: str) -> list[int]:
    """Parse counts per node: `"8(x2),4"` is `[8, 8, 4]` (sbatch(1), SLURM_TASKS_PER_NODE)."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise AllocationError(
                f"{text!r} is not a count per node as Slurm writes it, such as 8(x2),4",
                "Report this to mpiboot's developers, with Slurm's version: scontrol --version",
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def memory_limits(
    environ: Mapping[str, str], job: str, cpus: Mapping[str, int], host_names: Callable[[str], list[str]]
) -> dict[str, int]:
    """Return the memory limit of each node in bytes, without the nodes for which Slurm sets none (no `--mem`, no
    default).

    Parameters
    ----------
    environ
        The job's environment.
    job
        `scontrol show job --details --oneliner`: it names each group of nodes with its `Mem=` in MiB (0: unlimited).
    cpus
        Each node's CPUs.
    host_names
        Expands a list of nodes such as `n[1-2]`.
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
        names = host_names(nodes) if re.search(r"[\[,]", nodes) else [nodes]
        limits |= dict.fromkeys(names, mib * MIB)
    return {name: limit for name, limit in limits.items() if limit}
