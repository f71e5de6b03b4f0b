"""The environment for Slurm's commands, and the parsing of scontrol's output.

`submission` and `allocation` import this module; it imports no other of mpiboot.
"""

import re
import time
from collections.abc import Mapping

# Variables that change what the commands print, or which jobs and which cluster they mean (the manual of each command,
# ENVIRONMENT VARIABLES). SCANCEL_INTERACTIVE, for example, keeps scancel from doing anything.
CHANGING_VARIABLES = (
    *("SLURM_BITSTR_LEN", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT"),
    *("SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_", "SQUEUE_"),
)


def plain_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` without the variables that change what Slurm's commands print or do."""
    return {name: value for name, value in environ.items() if not name.startswith(CHANGING_VARIABLES)}


# Of Slurm's variables, those that say how its commands reach slurmctld.
ACCESS = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
# How the names of variables start that Slurm's commands take options from (srun(1), sbcast(1), scancel(1), scontrol(1)).
OPTIONS = ("SLURM_", "SRUN_", "SBCAST_", "SCANCEL_", "SCONTROL_", "SQUEUE_", "SACCT_")


def step_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` without the variables that change what Slurm's commands do."""
    return {name: value for name, value in environ.items() if name in ACCESS or not name.startswith(OPTIONS)}


def find_word(text: str, key: str) -> str | None:
    """Return the value of `key=value` in the output of scontrol; None if there is none."""
    match = re.search(rf"(?:^|\s){key}=(\S*)", text)
    return match[1] if match else None


def slurm_time(text: str | None) -> float | None:
    """Parse a time that Slurm prints, such as `2026-11-22T10:00:00`, or seconds since the epoch; None for any other text,
    such as `Unknown`.
    """
    if text and text.isdecimal():
        return float(text)
    try:
        return time.mktime(time.strptime(text or "", "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
