"""The machine's cgroups: the one thing outside that `up` makes, if Slurm is to confine jobs, and `down` removes."""

from __future__ import annotations

import os
from pathlib import Path

from common import MiniclusterError
from siteconf import CGROUP_CONTROLLERS, Site, cgroup_v1


def join_cgroups(site: Site, name: str, host: str, pid: int) -> None:
    """Put a node's init into separate groups, since Slurm gives a job's group the same name on every node."""
    for controller in site.cgroup_controllers():
        group = cgroup_v1(name, controller) / host
        if not (group.parent.parent / "cgroup.procs").exists():
            raise MiniclusterError(
                f"--cgroup needs cgroup v1's {controller} controller at {group.parent.parent}"
            )
        for folder in (group.parent, group):
            folder.mkdir(exist_ok=True)
            for limit in ("cpuset.cpus", "cpuset.mems") if controller == "cpuset" else ():
                (folder / limit).write_text((folder.parent / limit).read_text())  # they begin empty
        (group / "cgroup.procs").write_text(str(pid))


def remove_cgroups(name: str) -> None:
    """Remove the groups, innermost first. They must be empty."""
    for controller in CGROUP_CONTROLLERS:
        for folder, _, _ in os.walk(cgroup_v1(name, controller), topdown=False):
            Path(folder).rmdir()
