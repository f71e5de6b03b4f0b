"""Durations and sizes as people type them, in options of envpack and of mpiboot."""

from __future__ import annotations

import re

from envpack.errors import MalformedValueError

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
    "w": 604800,
    "week": 604800,
}
_POWERS = {"b": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_INFINITE = float("inf")
# Timers and polls of the standard library overflow at some larger number.
_LONGEST_S = 1e9
# As `repr` writes a float, so that any value can be handed on as text.
_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"


def parse_duration_s(text: str | float) -> float:
    """Return the seconds of `"30 min"`, `"1h"`, `"7d"` or `"90"`: a bare number is seconds, as in Dask.

    Raises
    ------
    MalformedValueError
        The text is not a time of zero or more, or is longer than 31 years.
    """
    match = re.fullmatch(rf"\s*({_NUMBER})\s*([a-z]*)\s*", str(text).lower())
    unit = (match[2] or "s") if match else ""
    scale = _SECONDS.get(unit) or _SECONDS.get(unit.removesuffix("s"), _INFINITE)
    seconds = float(match[1]) * scale if match else _INFINITE
    if not seconds <= _LONGEST_S:
        raise MalformedValueError(f"{text!r} is not a time", "Write 90, '90 s', '30 min', '2 h' or '7 d'")
    return seconds


def parse_size_bytes(text: str | int, *, allow_zero: bool = False) -> int:
    """Return the bytes of `"8GB"`, `"8G"` or `"512MiB"`: powers of 1024; a bare number is MiB, as in sbatch's `--mem`.

    Raises
    ------
    MalformedValueError
        The text is not a size, is less than a byte or more than an exbibyte, or is zero and `allow_zero` is false.
    """
    match = re.fullmatch(rf"\s*({_NUMBER})\s*([kmgt](?:i?b)?|b?)\s*", str(text).lower())
    size = float(match[1]) * 1024 ** _POWERS[match[2][:1] or "m"] if match else _INFINITE
    if not (1 <= size <= 1024**6 or (size == 0 and allow_zero)):
        raise MalformedValueError(f"{text!r} is not a size", "Write 800M, 16G or 1.5T")
    return int(size)
