import os

import pytest

from mpiboot.common import confinement

# What is on the left is read of the process's control groups; on the right, files below /sys/fs/cgroup.
GROUPS = [
    ("0::/slurmstepd.scope/job_7/step_0/user\n", {"slurmstepd.scope/job_7/memory.max": "900"}, 900),
    ("0::/job_7/step_0\n", {"job_7/memory.max": "900", "job_7/step_0/memory.max": "max"}, 900),
    ("0::/job_7/step_0\n", {"job_7/memory.max": "900", "job_7/step_0/memory.max": "800", "memory.max": "1000"}, 800),
    ("0::/\n", {"memory.max": "700"}, 700),
    ("0::/\n", {}, None),
    ("9:cpuset:/s\n4:memory:/s/job_7\n0::/\n", {"memory/s/job_7/memory.limit_in_bytes": "600"}, 600),
    ("4:hugetlb,memory:/slurm/job_7\n", {"memory/slurm/memory.limit_in_bytes": "500", "slurm/memory.max": "1"}, 500),
    # In a container, the groups of the host are not visible.
    ("4:memory:/elsewhere/7\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 9223372036854771712),
    ("", {}, None),
]  # fmt: skip


@pytest.mark.parametrize(("own", "files", "limit"), GROUPS)
def test_the_least_limit_of_the_groups_above_counts(own, files, limit, tmp_path):
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    # What lies outside does not count.
    (tmp_path / "memory.max").write_text("1\n")
    assert confinement.memory_limit_bytes(tmp_path / "own", tmp_path / "groups") == limit


@pytest.mark.parametrize(("affinity", "host", "allowed"), [({0, 1}, 8, 2), ({3}, 4, 1), ({0, 1}, 2, None)])
def test_cpus_count_only_where_the_process_is_confined(affinity, host, allowed, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: affinity)
    monkeypatch.setattr(os, "cpu_count", lambda: host)
    assert confinement.allowed_cpus() == allowed
