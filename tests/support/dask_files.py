"""Dask's configuration of one test: files of its own, and environment variables."""

import os

import dask.config
import pytest


class DaskFiles:
    """Writes configuration files into a folder, and lets Dask read them as when it is imported."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(dask.config, "paths", [str(folder)])
        self.read()

    def write(self, text, name="mpiboot.yaml"):
        """Write a file, and read all; return its path."""
        (self.folder / name).write_text(text)
        self.read()
        return self.folder / name

    def read(self):
        """Read the files and the variables again: mpiboot's section; clusters of this process need the others."""
        section = dask.config.collect(paths=[str(self.folder)]).get("mpiboot", {})
        self.monkeypatch.setitem(dask.config.global_config, "mpiboot", section)


@pytest.fixture
def dask_files(tmp_path, monkeypatch):
    """Files of Dask's that a test writes: `dask_files.write("mpiboot: {nodes: 2}")`."""
    folder = tmp_path / "dask files"
    folder.mkdir()
    for variable in [name for name in os.environ if name.startswith("DASK_MPIBOOT")]:
        monkeypatch.delenv(variable)
    return DaskFiles(folder, monkeypatch)
