"""Times and sizes as people type them. Standard library only: `boot` reads its options with these."""

import re

_SECONDS = {
    "ms": 0.001,
    "s": 1,
    "sec": 1,
    "m": 60,
    "min": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
}
# As `repr` writes a float, so that any value can be handed on as text.
_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_duration_s(text: str | float) -> float:
    """Seconds of `"30 min"`, `"1h"`, `"90"` (a bare number is seconds, as Dask has it).

    Raises
    ------
    ValueError
        The text is not a time of zero or more.
    """
    match = re.fullmatch(rf"\s*({_NUMBER})\s*([a-z]*)\s*", str(text).lower())
    unit = match and (match[2] or "s")
    if not match or not unit or (scale := _SECONDS.get(unit, _SECONDS.get(unit.removesuffix("s")))) is None:
        raise ValueError(f"{text!r} is not a time; write 90, '90 s', '30 min' or '2 h'")
    return float(match[1]) * scale


def parse_size_bytes(text: str | int) -> int:
    """Bytes of `"8GB"`, `"8G"`, `"512MiB"`; powers of 1024 and a bare number is MiB, as in sbatch's `--mem`.

    Raises
    ------
    ValueError
        The text is not a positive size.
    """
    match = re.fullmatch(rf"\s*({_NUMBER})\s*([kmgt]?)(?:i?b)?\s*", str(text).lower())
    if not match or float(match[1]) == 0:
        raise ValueError(f"{text!r} is not a size; write 800M, 16G or 1.5T")
    return int(float(match[1]) * 1024 ** _POWERS[match[2] or "m"])


def parse_walltime_s(text: str) -> float:
    """Seconds of sbatch's `--time`: `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M`, `D-H:M:S` (sbatch(1), `--time`).

    Raises
    ------
    ValueError
        The text has none of these forms.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a walltime; write minutes, H:MM:SS or D-HH:MM:SS, as for sbatch")
    days, *parts = (int(part) if part else None for part in match.groups())
    numbers = [part for part in parts if part is not None]
    units = [60, 1] if days is None and len(numbers) < 3 else [3600, 60, 1]
    return (days or 0) * 86400.0 + sum(number * unit for number, unit in zip(numbers, units, strict=False))


def show_duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 5 min`: two units at most."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def show_size(size_bytes: float) -> str:
    """`259 MiB`: three digits, powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.3g} TiB"
