"""Slurm, as used inside a job: builds the commands of srun, sbcast and scancel; `job` reads the allocation.

Boot finds `SYSTEM` by the batch system's name; it imports what boot may import at its start.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpiboot.batch.allocation import Allocation, AllocationSystem, Launch, Placement, Run
from mpiboot.batch.slurm.job import NODE_NAME, SRUN, TIMEOUT_S, local_end_time, read_job, run_scontrol
from mpiboot.batch.slurm.record import job_record
from mpiboot.batch.slurm.text import step_environment
from mpiboot.errors import BatchAwayError, BatchError


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
    node_variable = NODE_NAME

    def read(self, environ: Mapping[str, str], run: Run) -> Allocation:
        return read_job(environ, run)

    def job_environment(self, allocation: Allocation, environ: Mapping[str, str]) -> dict[str, str]:
        """Return `environ` with the variables by which srun, mpirun and hydra know the job, and no others of Slurm's.

        Others change what srun does (srun(1), INPUT ENVIRONMENT VARIABLES), or describe a step or another job.
        """
        names = ",".join(allocation.node_names)
        count = str(len(allocation.nodes))
        cpus = ",".join(str(node.cpus) for node in allocation.nodes)
        return step_environment(environ) | {
            **{"SLURM_JOB_ID": allocation.job_id, "SLURM_JOBID": allocation.job_id},
            **{"SLURM_JOB_NODELIST": names, "SLURM_NODELIST": names},
            **{"SLURM_JOB_NUM_NODES": count, "SLURM_NNODES": count},
            **{"SLURM_JOB_CPUS_PER_NODE": cpus, "SLURM_TASKS_PER_NODE": cpus},
            # The step of mpirun's daemons: in Slurm 20.11 it would wait for the end of the agents' step.
            "SLURM_OVERLAP": "1",
        }

    def end_time(self, allocation: Allocation, run: Run) -> float | None:
        record = run_scontrol(run, os.environ, "show", "job", "--oneliner", allocation.job_id)
        return local_end_time(job_record(record), os.environ, run)

    def on_every_node(self, allocation: Allocation, command: Sequence[str]) -> list[str]:
        count = str(len(allocation.nodes))
        # Stagers and ranks run in this step. Without a number of CPUs it has all of the job's on each node, also if
        # Slurm confines steps (srun(1), --exact and --whole).
        return [
            *(*SRUN, "--mpi=none"),
            *("--nodes", count, "--ntasks", count, "--ntasks-per-node", "1"),
            # The failure of one node must neither end the agents of the others nor hide their answers.
            *("--cpu-bind=none", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"),
            *command,
        ]

    def cancel_command(self, job_id: str) -> list[str]:
        return ["scancel", job_id]

    def carry_command(self, source: Path, target: Path) -> list[str]:
        """Return an sbcast(1) command: the nodes' daemons copy the file to each other in a tree."""
        return ["sbcast", "--force", str(source), str(target)]

    def launch(
        self, place: Placement, host_file: Path, rank: Sequence[str], mpi: str | None, run: Run
    ) -> Launch:
        """Return how srun(1) starts ranks; a file with one line per rank sets their nodes (`--distribution`).

        Slurm 24.11 refuses `--nodes` beside it: "--nodes is incompatible with --distribution=arbitrary".
        """
        command = [
            *SRUN,
            *(f"--mpi={pmi_plugin(mpi, run)}", f"--ntasks={place.world_size}"),
            *("--distribution=arbitrary", "--overcommit", "--cpu-bind=none"),
            *("--no-kill", "--kill-on-bad-exit=0"),
            *rank,
        ]
        lines = [f"{node}\n" * ranks for node, ranks in zip(place.nodes, place.ranks_per_node, strict=True)]
        return Launch(command, "".join(lines), {"SLURM_HOSTFILE": str(host_file)})


SYSTEM = SlurmAllocation()


def pmi_plugin(mpi: str | None, run: Run) -> str:
    """Return the plugin for `srun --mpi`.

    MPICH's ranks abort with PMIx, and Open MPI's and Intel's need it; Slurm also lists one that it cannot load.
    """
    if mpi == "mpich":
        return "pmi2"
    try:
        run([*SRUN, "--mpi=pmix", "--nodes=1", "--ntasks=1", "true"], timeout_s=TIMEOUT_S)
    except BatchAwayError:
        raise
    except BatchError:
        return "pmi2"
    return "pmix"
