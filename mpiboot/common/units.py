"""Parses walltimes, and formats durations and sizes for messages (`envpack.common.units` parses those).

Every room may import this module.
"""

import re


def parse_walltime_s(text: str) -> float:
    """Return the seconds of a walltime; infinity if it is none.

    Parameters
    ----------
    text : str
        `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M` or `D-H:M:S`; none: 0, `UNLIMITED` or `INFINITE` (sbatch(1), `--time`).

    Raises
    ------
    MalformedValueError
        `text` has none of these forms.
    """
    if text.strip().upper() in ("UNLIMITED", "INFINITE"):
        return float("inf")
    number = r"([0-9]{1,9})"
    match = re.fullmatch(rf"(?:{number}-)?{number}(?::{number})?(?::{number})?", text.strip())
    if not match:
        # Imported here: agents and fork servers import this module, and each further file slows their start.
        from envpack.errors import MalformedValueError

        raise MalformedValueError(
            f"{text!r} is not a walltime", "Write minutes, H:MM:SS or D-HH:MM:SS, as for sbatch"
        )
    days, *parts = (int(part) if part else None for part in match.groups())
    numbers = [part for part in parts if part is not None]
    units = [60, 1] if days is None and len(numbers) < 3 else [3600, 60, 1]
    seconds = (days or 0) * 86400.0 + sum(n * unit for n, unit in zip(numbers, units, strict=False))
    return seconds or float("inf")


def show_duration(seconds: float) -> str:
    """Return a duration for a message, in two units at most: `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def show_size(size_bytes: float) -> str:
    """Return a size for a message, with three digits and powers of 1024: `259 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.3g} TiB"
