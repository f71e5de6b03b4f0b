"""Slurm: `submission` for the client, `allocation` for inside the job. Every word of Slurm's is in this folder."""

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
