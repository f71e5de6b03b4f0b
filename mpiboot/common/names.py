"""Shows many names of nodes in a few words.

Every room may import this module.
"""

import itertools
import re
from collections.abc import Sequence


def show_names(names: Sequence[str]) -> str:
    """Return names in brief: node1, node2, node3, gpu7 are `node[1-3],gpu7`; n001 and n003 are `n[001,003]`.

    Neighbours in the list are put together if they differ in their last number alone, and it has as many digits.
    """
    words = []
    for (prefix, width), group in itertools.groupby(
        map(_split, names), lambda parts: (parts[0], len(parts[1]))
    ):
        numbers = [int(digits) for _, digits in group if digits]
        ranges = []
        for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
            first, *_, last = (number for _, number in [*run] * 2)
            ranges.append(f"{first:0{width}}" if first == last else f"{first:0{width}}-{last:0{width}}")
        listed = ",".join(ranges)
        words.append(f"{prefix}[{listed}]" if len(numbers) > 1 else f"{prefix}{listed}")
    return ",".join(words)


def _split(name: str) -> tuple[str, str]:
    """Return a name without its last number, and that number's digits."""
    digits = re.search(r"\d*\Z", name)
    assert digits
    return name[: digits.start()], digits[0]
