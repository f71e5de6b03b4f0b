"""Slurm: `submission` for the client, `allocation` for boot inside the job. All of Slurm's words are in this folder."""

from mpiboot.batch.facts import Facts

FACTS = Facts(
    name="slurm",
    title="Slurm",
    command="sbatch",
    job_variable="SLURM_JOB_ID",
    variables=("SLURM_", "SLURMD_"),
    # Where Slurm is configured, and who asks (sbatch(1), and Slurm's guide to JSON Web Tokens).
    kept_variables=("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_DEBUG_FLAGS"),
    # srun(1), OUTPUT ENVIRONMENT VARIABLES; most of them are inputs of srun and sbatch, too.
    step_variables=(
        *("SLURM_STEP*", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_GTIDS", "SLURM_TASK_PID", "SLURM_SRUN_*"),
        *("SLURM_NTASKS*", "SLURM_NPROCS", "SLURM_TASKS_PER_NODE", "SLURM_CPU_BIND*", "SLURM_MEM_BIND*"),
        *("SLURM_DISTRIBUTION", "SLURM_HOSTFILE", "SLURM_OVERCOMMIT", "SLURM_MPI_TYPE", "SLURM_PMI*"),
        *("SLURM_LAUNCH_NODE_IPADDR", "SLURM_KILL_BAD_EXIT", "SLURM_NO_KILL", "SLURM_LABELIO"),
    ),
    device_variables=("SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"),
    launcher="srun",
    transport="sbcast",
)
