"""Fakes of a batch system's commands, and files of Dask's configuration."""

import pytest
from dask_files import dask_files

from mpiboot.batch import registry
from mpiboot.client import job_states

__all__ = ["commands", "dask_files"]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands, alone on the PATH: NAME="lines of sh"."""
    registry.batch_system.cache_clear()
    monkeypatch.setattr(job_states, "_caches", {})
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("MPIBOOT_HOME", str(tmp_path / "home"))
    (tmp_path / "bin").mkdir()

    def write(**scripts):
        for name, lines in {"sbatch": "", **scripts}.items():
            script = tmp_path / "bin" / name
            script.write_text(f"#!/bin/sh\n{lines}\n")
            script.chmod(0o755)

    yield write
    registry.batch_system.cache_clear()
