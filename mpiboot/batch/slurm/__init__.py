"""Slurm: `submission` for the client, `allocation` for boot inside the job. All of Slurm's words are in this folder."""

from mpiboot.batch.facts import Facts

FACTS = Facts(
    name="slurm",
    title="Slurm",
    command="sbatch",
    job_variable="SLURM_JOB_ID",
    variables=("SLURM_",),
    kept_variables=("SLURM_CONF",),
    launcher="srun",
    transport="sbcast",
)
