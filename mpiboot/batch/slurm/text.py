"""How Slurm's commands are asked and how their output is read: what client and job both need."""

import re
import time
from collections.abc import Mapping


def plain_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without what changes how Slurm's commands answer (squeue(1), sacct(1), environment variables)."""
    changing = ("SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SQUEUE_", "SACCT_")
    return {name: value for name, value in environ.items() if not name.startswith(changing)}


def find_word(text: str, key: str) -> str | None:
    """The value of `key=value` in scontrol's words."""
    match = re.search(rf"(?:^|\s){key}=(\S*)", text)
    return match[1] if match else None


def slurm_time(text: str | None) -> float | None:
    """Seconds since the epoch of `2026-11-22T10:00:00` or of a number; None for `Unknown`."""
    if not text or not text[0].isdigit():
        return None
    return float(text) if text.isdigit() else time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
