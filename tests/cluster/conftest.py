"""Which cluster tests share a process, and in which order they begin.

Each file is a group, and each site of test_sites.py. pytest-xdist (`--dist=loadgroup --no-loadscope-reorder`) gives the
next group to the process that is free first.
"""

from __future__ import annotations

from itertools import chain, zip_longest
from pathlib import Path

import pytest

# The groups that take minutes, or load the machine, longest first. Others begin between them.
HEAVY = (
    *("test_cables", "test_security", "test_soak", "test_port_scan", "test_transports", "test_connect"),
    *("fat", "strict", "shut", "accounting", "plain"),
)


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    others = [item for item in items if here not in item.path.parents]
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if here in item.path.parents:
            mark = item.get_closest_marker("xdist_group")
            group = mark.args[0] if mark else item.path.stem
            if mark is None:
                item.add_marker(pytest.mark.xdist_group(group))
            groups.setdefault(group, []).append(item)
    heavy = [groups.pop(name) for name in HEAVY if name in groups]
    pairs = zip_longest(heavy, groups.values(), fillvalue=[])
    items[:] = [*others, *chain.from_iterable(chain.from_iterable(pairs))]
