"""The notebook that ships with mpiboot, in JupyterLab on the login node, in a real browser."""

import asyncio
import json
import re
from pathlib import Path

import pytest
from browser import becomes_true, browse, chromium, listen, tunnel
from waiting import wait_until

pytestmark = pytest.mark.cluster
__all__ = ["chromium"]

TOUR = Path(__file__).resolve().parents[2] / "mpiboot/examples/notebooks/tour.ipynb"
# As at many sites: Jupyter is the site's, and the kernel is of the user's own environment.
KERNEL = {
    "argv": ["/home/alice/env/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "display_name": "env",
    "env": {"TOUR_NO_STAGE": "1", "PATH": "/home/alice/env/bin:/usr/bin:/bin"},
}
SETTINGS = [
    *("--no-browser", "--ServerApp.sock=/home/alice/jupyter.sock", "--IdentityProvider.token=secret"),
    *("--ServerApp.allow_remote_access=True", "--LabApp.expose_app_in_browser=True"),
    "--LabApp.news_url=",
]
# What the page shows below each cell.
SHOWN = "jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.outputArea?.node.innerText ?? '')"
IDLE = "globalThis.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'"


@pytest.fixture
def jupyter(minicluster, alice):
    """JupyterLab as alice on the login node; the host's path of its socket."""
    prefix = minicluster.add_env("jupyter", None, ["jupyterlab"])
    alice.writes(".local/share/jupyter/kernels/mine/kernel.json", json.dumps(KERNEL))
    alice.writes("tour.ipynb", TOUR.read_text().replace('"python3"', '"mine"'))  # chosen from Jupyter's menu
    said = minicluster.folder / "log/jupyter.log"
    with said.open("w") as log:
        process = alice.begins(prefix / "bin/python", "-m", "jupyterlab", *SETTINGS, stdout=log, stderr=log)
    try:
        wait_until(lambda: "/lab?token=" in said.read_text(), "Jupyter", 60, said.read_text)
        yield alice.home / "jupyter.sock"
    finally:
        process.terminate()
        process.wait(30)


def test_the_tour(chromium, jupyter, tmp_path):
    async def main():
        async with (
            listen(tunnel(lambda: asyncio.open_unix_connection(jupyter))) as port,
            browse(chromium) as browser,
        ):
            # All cells in view: JupyterLab renders no others, and innerText has only what is rendered.
            page = await browser.new_page(viewport={"width": 1200, "height": 5000})
            await page.goto(f"http://localhost:{port}/lab/tree/tour.ipynb?token=secret")
            await becomes_true(page, IDLE)
            await page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
            try:
                # The wait is seen while it lasts, then the cluster in its place, and at last the end.
                await becomes_true(page, f"/^ *[0-9.]+ s .*job \\d+ is (?!ready)\\w+/.test({SHOWN}[3])")
                await becomes_true(page, f"/COMPLETED/.test({SHOWN}.at(-1))", 180_000)
            finally:
                await page.screenshot(path=tmp_path / "page.png")
            return await page.evaluate(SHOWN)

    shown = asyncio.run(main())
    seen = f"{tmp_path}/page.png\n{shown}"
    assert re.search(r"job \d+ is ready: 2 workers\s+MPICluster\s(.|\n)*Workers: 2", shown[3]), seen
    assert "Connection method: Cluster object" in shown[4] and "Error" not in "".join(shown), seen
    assert "'node1'" in shown[6] and "'node2'" in shown[6], seen
