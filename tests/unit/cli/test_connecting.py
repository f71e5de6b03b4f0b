import webbrowser
from types import SimpleNamespace

import dask
import pytest
from click.testing import CliRunner

from mpiboot.cli.connecting import dashboard
from mpiboot.client import find, show


@pytest.mark.parametrize(
    ("setting", "printed", "opened"),
    [
        (show.USUAL_LINK, "http://10.0.0.1:8787/status", "http://10.0.0.1:8787/status"),
        ("https://hub/{host}/{port}/status", "https://hub/10.0.0.1/8787/status", "https://hub/10.0.0.1/8787/status"),
        ("/proxy/{host}:{port}/status", "/proxy/10.0.0.1:8787/status", "http://10.0.0.1:8787/status"),
    ],
)  # fmt: skip
def test_the_browser_opens_what_it_can(monkeypatch, tmp_path, setting, printed, opened):
    job = SimpleNamespace(directory=SimpleNamespace(dashboard_page=tmp_path / "page.html"))
    endpoint = SimpleNamespace(address="tcp://10.0.0.1:1", dashboard="http://10.0.0.1:8787/status")
    monkeypatch.setattr(find, "find_job", lambda wanted: job)
    monkeypatch.setattr(show, "endpoint_of", lambda job: endpoint)
    pages = []
    monkeypatch.setattr(webbrowser, "open", pages.append)
    with dask.config.set({"distributed.dashboard.link": setting}):
        done = CliRunner().invoke(dashboard, ["--open"], catch_exceptions=False)
    assert done.stdout == f"{printed}\n"
    assert pages == [job.directory.dashboard_page.as_uri()]
    assert f'content="0; url={opened}"' in job.directory.dashboard_page.read_text()
