"""What the kernel allows this process: CPUs and memory, which may be less than a batch system says.

Agents import this module at their start, so it imports little.
"""

import os
from pathlib import Path

OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def allowed_cpus() -> int | None:
    """Return how many CPUs this process may run on; None if it may run on all of the host's."""
    allowed = len(os.sched_getaffinity(0))
    return allowed if allowed < (os.cpu_count() or 1) else None


def memory_limit_bytes(own_cgroups: Path = OWN_CGROUPS, cgroups: Path = CGROUPS) -> int | None:
    """Return the least memory limit of this process's control groups (cgroups(7), versions 1 and 2); None without one.

    A limit of any of a group's parents holds for the group, too. Groups that are not visible here, as in a container,
    do not count.
    """
    limits = []
    for line in own_cgroups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.strip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(root.parts)]):
            try:
                word = (folder / name).read_text().strip()
            except OSError:
                continue
            if word.isdigit():  # not `max`
                limits.append(int(word))
    return min(limits, default=None)
