"""The notebook that ships with mpiboot, in JupyterLab on the login node, in a real browser."""

import asyncio
import json
import re
import subprocess
from pathlib import Path

import pytest
from browser import browse, chromium, listen, tunnel
from faults import wait_until

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
def jupyter(minicluster):
    """JupyterLab as alice on the login node; the host's path of its socket."""
    prefix = minicluster.add_env("jupyter", None, ["jupyterlab"])
    home = minicluster.home
    kernel = home / ".local/share/jupyter/kernels/mine/kernel.json"
    tour = TOUR.read_text().replace('"python3"', '"mine"')  # chosen from Jupyter's menu
    script = 'mkdir -p "$(dirname "$0")"; printf %s "$1" > "$0"'
    for path, text in ((kernel, json.dumps(KERNEL)), (home / "tour.ipynb", tour)):
        minicluster.login(["sh", "-c", script, str(path.relative_to(home)), text])
    command = minicluster.login_argv([str(prefix / "bin/python"), "-m", "jupyterlab", *SETTINGS])
    said = minicluster.folder / "log/jupyter.log"
    with said.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: "/lab?token=" in said.read_text(), "Jupyter", 60, said.read_text)
        yield home / "jupyter.sock"
    finally:
        process.terminate()
        process.wait(30)
        minicluster.login(["scancel", "--me"])
        wait_until(
            lambda: not minicluster.login(["squeue", "--noheader", "--me"]).stdout, "end of all jobs", 60
        )


def test_the_tour(chromium, jupyter, tmp_path):
    async def main():
        async with (
            listen(tunnel(lambda: asyncio.open_unix_connection(jupyter))) as port,
            browse(chromium) as browser,
        ):
            page = await browser.page()
            await page.go(f"http://localhost:{port}/lab/tree/tour.ipynb?token=secret")
            await page.until(IDLE)
            await page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells'), 0")
            try:
                # The wait is seen while it lasts, then the cluster in its place, and at last the end.
                await page.until(f"/^ *[0-9.]+ s .*job \\d+ is (?!ready)\\w+/.test({SHOWN}[3])")
                await page.until(f"/COMPLETED/.test({SHOWN}.at(-1))", 120)
            finally:
                await page.picture(tmp_path / "page.png")
            return await page.evaluate(SHOWN)

    shown = asyncio.run(main())
    seen = f"{tmp_path}/page.png\n{shown}"
    assert re.search(r"job \d+ is ready: 2 workers\s+MPICluster\s(.|\n)*Workers: 2", shown[3]), seen
    assert "Connection method: Cluster object" in shown[4] and "Error" not in "".join(shown), seen
    assert "'node1'" in shown[6] and "'node2'" in shown[6], seen
