"""Slurm: `submission` for the client, `allocation` for inside the job. Every word of Slurm's is in this folder."""
