"""What a nanny reports of its worker's end."""

import ctypes
import os
import subprocess
from signal import SIGKILL
from types import SimpleNamespace

import dask.config
import pytest

from mpiboot.preloads import nanny as preload


@pytest.fixture
def events():
    return []


@pytest.fixture
def nanny(events):
    return SimpleNamespace(
        worker_address="tls://10.0.0.1:1",
        name="mpiboot-3",
        ip="10.0.0.1",
        status=SimpleNamespace(name="running"),
        memory_manager=SimpleNamespace(_last_terminated_pid=-1, memory_limit=2**30),
        log_event=lambda topic, message: events.append((topic, message)),
    )


@pytest.mark.parametrize(
    ("offset", "expected"), [(None, {}), ("40", {"dashboard_address": "10.0.0.1:41043"})]
)
def test_a_worker_s_pages_have_a_port_of_the_range(nanny, monkeypatch, offset, expected):
    nanny.port, nanny.worker_kwargs, nanny._on_worker_exit_sync = 41003, {}, lambda status: None
    nanny.config = dask.config.config
    monkeypatch.setattr(preload, "count_oom_kills", lambda: 0)
    monkeypatch.setattr(preload.os, "environ", {"MPIBOOT_WORKER_PAGES": offset} if offset else {})
    preload.dask_setup(nanny)
    assert nanny.worker_kwargs == expected


def test_a_task_has_no_variable_of_mpi_or_of_a_step(nanny, monkeypatch):
    nanny.worker_kwargs, nanny._on_worker_exit_sync, nanny.config = (
        {},
        lambda status: None,
        dask.config.config,
    )
    monkeypatch.setattr(preload, "count_oom_kills", lambda: 0)
    kept = {"BATCH_JOB_ID": "7", "UCX_TLS": "all", "HOME": "/home/a"}
    gone = {"PMIX_MCA_psec": "native", "PMI_RANK": "3", "OMPI_X": "1", "MPIR_X": "1", "MPI_LOCALRANKID": "0"}
    gone |= {"BATCH_STEP_ID": "0", "BATCH_PROC": "3", "MPIBOOT_MPI_ONLY": "BATCH_STEP* BATCH_PROC"}
    monkeypatch.setattr(preload.os, "environ", kept | gone)
    preload.dask_setup(nanny)
    assert preload.os.environ == kept


def test_what_mpis_library_has_set_is_removed_too(nanny, monkeypatch):
    """PMIx calls setenv(3), which Python does not see; but a worker is a new process."""
    nanny.worker_kwargs, nanny._on_worker_exit_sync, nanny.config = (
        {},
        lambda status: None,
        dask.config.config,
    )
    monkeypatch.setattr(preload, "count_oom_kills", lambda: 0)
    ctypes.CDLL(None).setenv(b"PMIX_MCA_psec", b"native", 1)
    assert "PMIX_MCA_psec" not in os.environ
    assert "PMIX_MCA_psec" in set(preload.library_variables())
    preload.dask_setup(nanny)
    assert subprocess.run(["printenv", "PMIX_MCA_psec"], capture_output=True).returncode == 1


def test_a_worker_that_dies_is_reported_with_all_that_is_known(nanny, events):
    preload.exit_reporter(nanny)(3)
    assert events == [
        (
            preload.WORKER_EXIT_TOPIC,
            {
                "address": "tls://10.0.0.1:1",
                "name": "mpiboot-3",
                "ip": "10.0.0.1",
                "exit_status": 3,
                "memory": None,
                "limit_bytes": 2**30,
            },
        )
    ]


def test_a_worker_that_its_nanny_closes_is_not_reported(nanny, events):
    nanny.status.name = "closing"
    preload.exit_reporter(nanny)(0)
    assert events == []


@pytest.mark.parametrize(
    ("pid", "oom_kills", "exit_status", "memory"),
    [
        (-1, 0, -SIGKILL, None),
        (41, 0, -SIGKILL, "limit"),
        (-1, 1, -SIGKILL, "cgroup"),
        (-1, 1, 1, None),
    ],
    ids=["someone else's kill", "its nanny", "the kernel", "another process was killed"],
)
def test_what_ended_a_worker_for_its_memory(nanny, events, monkeypatch, pid, oom_kills, exit_status, memory):
    counts = iter([0, oom_kills, oom_kills])
    monkeypatch.setattr(preload, "count_oom_kills", lambda: next(counts))
    report = preload.exit_reporter(nanny)
    nanny.memory_manager._last_terminated_pid = pid
    report(exit_status)
    report(-SIGKILL)  # the next one has another cause
    assert [message["memory"] for _, message in events] == [memory, None]


@pytest.mark.parametrize(
    ("groups", "file", "text"),
    [
        ("0::/a/b\n", "a/b/memory.events", "low 0\noom_kill 3\n"),
        ("4:cpu:/x\n3:memory:/c\n", "memory/c/memory.oom_control", "under_oom 0\noom_kill 3\n"),
    ],
    ids=["version 2", "version 1"],
)
def test_the_kernel_s_count_of_kills(tmp_path, monkeypatch, groups, file, text):
    counts = tmp_path / file
    counts.parent.mkdir(parents=True)
    counts.write_text(text)
    own = tmp_path / "cgroup"
    own.write_text(groups)
    monkeypatch.setattr(preload, "CGROUPS", tmp_path)
    monkeypatch.setattr(preload, "OWN_CGROUPS", own)
    assert preload.count_oom_kills() == 3
