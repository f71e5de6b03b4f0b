"""Medians, spreads, ratios, and the tables that show them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def median(values: Sequence[float | None]) -> float | None:
    """Return the median of the values that there are."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def show(values: Sequence[float | None], unit: str = "") -> str:
    """`5.1 (4.9-6.0) s`: the median, and from the least to the most where there is more than one."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ({number(min(known))}-{number(max(known))})" if len(known) > 1 else ""
    return f"{number(statistics.median(known))}{spread}{' ' if unit else ''}{unit}"


def number(value: float) -> str:
    """Three figures, never in exponents."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def ratio(
    value: Sequence[float | None], reference: Sequence[float | None], paired: bool = True
) -> float | None:
    """Return how many times `reference` is `value`: the median of the rounds' ratios, else the medians' ratio.

    The rounds of a bench lie minutes apart, and the machine's load with them; within a round it is much the same.
    """
    if paired and len(value) == len(reference):
        found = [ref / val for val, ref in zip(value, reference, strict=True) if val and ref]
        return median(found)
    mine, theirs = median(value), median(reference)
    return theirs / mine if mine and theirs else None


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown that can be read as it is; the README quotes it unchanged."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )
