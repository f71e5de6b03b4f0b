"""Which cluster tests share a process, and in which order they begin.

Each file is a group, and each site of test_sites.py. pytest-xdist (`--dist=loadscope --no-loadscope-reorder`) gives the
next group to the process that is free first. Its own `loadgroup` does not work with pytest 9.2.
"""

from __future__ import annotations

import re
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pytest

# The groups that take minutes, or load the machine, longest first. Others begin between them.
HEAVY = (
    *("test_cables", "test_security", "test_soak", "test_port_scan", "test_transports", "test_connect"),
    *("fat", "strict", "shut", "oldest", "newest", "accounting", "plain"),
)


def group_of(nodeid: str) -> str:
    """Return the site of a test of test_sites.py, else the name of the test's file, without suffix."""
    site = re.search(r"test_sites\.py::\w+\[(\w+)\]$", nodeid)
    return site[1] if site else Path(nodeid.partition("::")[0]).stem


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return a scheduler of groups, for `--dist=loadscope`; None leaves the choice to pytest-xdist."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log) if config.getvalue("dist") == "loadscope" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    others = [item for item in items if here not in item.path.parents]
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if here in item.path.parents:
            groups.setdefault(group_of(item.nodeid), []).append(item)
    heavy = [groups.pop(name) for name in HEAVY if name in groups]
    pairs = zip_longest(heavy, groups.values(), fillvalue=[])
    items[:] = [*others, *chain.from_iterable(chain.from_iterable(pairs))]
