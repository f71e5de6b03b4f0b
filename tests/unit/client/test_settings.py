import os
import subprocess
import sys

import dask.config
import pytest

from mpiboot import config as configuration
from mpiboot.client import settings
from mpiboot.client.submit import job_variables
from mpiboot.errors import UsageError
from mpiboot.protocol.variables import SETUP_VARIABLE


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Write a configuration file of the user's, and read it."""
    folder = tmp_path / "dask"
    folder.mkdir()
    monkeypatch.setattr(dask.config, "paths", [str(folder)])

    def write(text):
        file = folder / "mpiboot.yaml"
        file.write_text(text)
        config = dask.config.collect(paths=[str(folder)], env={})
        monkeypatch.setattr(dask.config, "global_config", config)
        return file

    with dask.config.set({}):
        monkeypatch.setattr(dask.config, "config", {})
        monkeypatch.setattr(
            dask.config, "get", lambda key, default: dask.config.global_config.get(key, default)
        )
        yield write


def test_site_settings_are_the_lowest_layer(site, monkeypatch, tmp_path):
    site(
        "mpiboot:\n  partition: multiple\n  idle-timeout: 1 h\n  setup: module load x\n  nodes: 3\n  mem: 64G\n"
    )
    monkeypatch.setenv("DASK_MPIBOOT__NODES", "4")
    config = settings.load_config({"partition": "other", "env": str(tmp_path)})
    assert (config.partition, config.idle_timeout, config.nodes, config.mem) == ("other", 3600, 4, 64 << 30)
    assert config.setup == ("module load x",)
    assert job_variables(config) == {SETUP_VARIABLE: "module load x"}
    assert "module" not in " ".join(configuration.boot_arguments(config))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{partitoin: x}",
            r"unknown option 'partitoin' \(did you mean partition\?\)\. Use one of: batch_system, env",
        ),
        ("{insecure: true}", r"insecure cannot be set in a configuration file\. Type --insecure"),
        ("{nodes: many}", r"--nodes: 'many' is not a count\. Write a whole number of at least 1$"),
        ("[nodes]", r"what `mpiboot:` holds is not a mapping .*\. Write one option a line below it"),
    ],
)
def test_a_wrong_file_is_named(site, text, message):
    file = site(f"mpiboot: {text}\n")
    with pytest.raises(UsageError, match=rf"^{file}: {message}"):
        settings.load_config({"env": "/e"})


@pytest.mark.parametrize("name", ["home", "archive"])
def test_boots_own_options_are_refused(name):
    with pytest.raises(UsageError, match=rf"{name} cannot be set in a Python call\. [SL]e"):
        settings.load_config({name: "/x"})


def test_more_workers_than_there_will_be_cannot_be_the_least():
    with pytest.raises(UsageError, match="--min-workers 9: the job has 8 workers at most"):
        settings.load_config({"nodes": 2, "workers_per_node": 4, "min_workers": 9})
    settings.load_config({"nodes": 2, "workers_per_node": 4, "min_workers": 8})


def test_a_malformed_settings_file_is_told_in_a_line(tmp_path):
    (tmp_path / "mpiboot.yaml").write_text("mpiboot:\n  nodes: 2\n interface: ib0\n")
    done = subprocess.run(
        [sys.executable, "-m", "mpiboot", "submit", "--dry-run"],
        env={**os.environ, "DASK_CONFIG": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{tmp_path}/mpiboot.yaml' is malformed" in done.stderr and "line 3" in done.stderr


def test_an_option_that_does_not_exist_is_refused_without_a_value_too():
    with pytest.raises(UsageError, match=r"unknown option 'nodez' \(did you mean nodes\?\)"):
        settings.load_config({"nodez": None})
