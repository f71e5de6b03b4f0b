"""The dashboard in a real browser, through the guard."""

import asyncio
import contextlib
import sys
import time

import dask
import pytest
from browser import COLOURED_PIXELS, becomes_true, browse, chromium, listen, portal, tunnel
from distributed import Client, Scheduler, Worker
from distributed.comm.tcp import TLSListener
from distributed.node import ServerNode

from mpiboot.boot.certificates import make_job_secrets
from mpiboot.protocol import secrets as security
from mpiboot.protocol.variables import JOB_DIRECTORY_VARIABLE

__all__ = ["chromium"]

# What the task stream has been told over its websocket.
TASKS_TOLD = """
(window.Bokeh?.documents ?? [])
    .flatMap(page => [...page._all_models.values()])
    .filter(model => model.type == "ColumnDataSource" && model.columns().includes("worker_thread"))
    .map(source => source.get_length() ?? 0)
    .reduce((sum, length) => sum + length, 0)
"""
OPEN_WEBSOCKET = """
new Promise(resolve => {
    const socket = new WebSocket("ADDRESS", ["bokeh", "token"])
    socket.onopen = () => resolve("open")
    socket.onerror = () => resolve("refused")
})
"""


class Dashboard:
    def __init__(self, scheduler, job):
        self.scheduler, self.job, self.token = scheduler, job, security.read_token(job)
        self.port = scheduler.http_server.port

    def url(self, page="status", host=None):
        return f"http://{host or f'127.0.0.1:{self.port}'}/{page}"


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Start a guarded scheduler and two workers, as boot configures them."""
    job = tmp_path / "slurm-a-7"
    job.mkdir(mode=0o700)
    make_job_secrets(job, valid_for_s=600)
    monkeypatch.setenv(JOB_DIRECTORY_VARIABLE, str(job))
    monkeypatch.delitem(sys.modules, security.GUARD_PRELOAD, raising=False)
    start = ServerNode.start_http_server
    monkeypatch.setattr(ServerNode, "start_http_server", getattr(start, "__wrapped__", start))
    start = TLSListener.start
    monkeypatch.setattr(TLSListener, "start", getattr(start, "__wrapped__", start))
    settings = {
        name.removeprefix("DASK_").lower().replace("__", "."): dask.config.interpret_value(value)
        for name, value in security.dask_tls_environment(job).items()
    }
    settings["distributed.scheduler.preload"] = settings["distributed.worker.preload"] = [
        security.GUARD_PRELOAD
    ]
    loopback = {"host": "127.0.0.1", "protocol": "tls", "dashboard_address": "127.0.0.1:0"}

    @contextlib.asynccontextmanager
    async def start_all():
        async with (
            Scheduler(port=0, dashboard=True, **loopback) as scheduler,
            Worker(scheduler.address, nthreads=1, **loopback),
            Worker(scheduler.address, nthreads=1, **loopback),
        ):
            yield Dashboard(scheduler, job)

    with dask.config.set(settings):
        yield start_all
    sys.modules.pop(security.GUARD_PRELOAD, None)


@pytest.mark.parametrize("way", ["direct", "tunnel"])
def test_the_task_stream_draws(chromium, serve, way):
    async def main():
        async with (
            serve() as dashboard,
            listen(tunnel(lambda: asyncio.open_connection("127.0.0.1", dashboard.port))) as port,
            Client(dashboard.scheduler.address, asynchronous=True, set_as_default=False) as client,
            browse(chromium) as browser,
        ):
            host = f"127.0.0.1:{dashboard.port}" if way == "direct" else f"localhost:{port}"
            page = await browser.new_page()
            await page.goto(f"http://{host}/individual-task-stream?token={dashboard.token}")
            assert page.url == f"http://{host}/individual-task-stream"
            devtools = await page.context.new_cdp_session(page)
            history = await devtools.send("Page.getNavigationHistory")
            # A new page's first, blank one may stay in its history.
            been = [entry["url"] for entry in history["entries"] if entry["url"] != "about:blank"]
            assert been == [f"http://{host}/individual-task-stream"]
            assert await page.evaluate("document.cookie") == ""  # HttpOnly
            await becomes_true(page, "window.Bokeh?.documents?.length > 0")
            # One row holds the place; with nothing drawn yet, what is drawn later came through the websocket.
            assert (await page.evaluate(TASKS_TOLD), await page.evaluate(COLOURED_PIXELS)) == (1, 0)

            await client.gather(client.map(lambda x: time.sleep(0.05), range(40)))
            await becomes_true(page, f"{TASKS_TOLD.strip()} >= 40")
            await becomes_true(page, f"{COLOURED_PIXELS.strip()} > 500")

            # The page that `mpiboot dashboard` links to, by the cookie alone.
            await page.goto(f"http://{host}/status")
            await becomes_true(page, "window.Bokeh?.documents?.length > 0")
            await becomes_true(page, f"{COLOURED_PIXELS.strip()} > 500")

    asyncio.run(main())


@pytest.mark.parametrize("allowed", [True, False])
def test_plots_behind_a_portal_that_rewrites_the_host(chromium, serve, allowed):
    """As Open OnDemand does: the browser's Origin is the portal's, and Host the node's. Its path may stay, too."""

    async def main():
        async with (
            serve() as dashboard,
            listen(
                portal(lambda: asyncio.open_connection("127.0.0.1", dashboard.port), "node1:40001")
            ) as port,
            Client(dashboard.scheduler.address, asynchronous=True, set_as_default=False) as client,
            browse(chromium) as browser,
        ):
            origin = f"http://localhost:{port}"
            if allowed:
                dashboard.scheduler.http_server.request_callback.origins = frozenset([origin])
            page = await browser.new_page()
            await page.goto(f"{origin}/node/node1/40001/individual-task-stream?token={dashboard.token}")
            assert page.url == f"{origin}/node/node1/40001/individual-task-stream"
            await becomes_true(page, "window.Bokeh !== undefined")
            await client.gather(client.map(lambda x: time.sleep(0.05), range(40)))
            websocket = OPEN_WEBSOCKET.replace("ADDRESS", f"ws://localhost:{port}/node/node1/40001/status/ws")
            assert await page.evaluate(websocket) == ("open" if allowed else "refused")
            if allowed:
                await becomes_true(page, f"{TASKS_TOLD.strip()} >= 40")
                await becomes_true(page, f"{COLOURED_PIXELS.strip()} > 500")

    asyncio.run(main())


def test_without_the_token_there_is_nothing_to_see(chromium, serve):
    async def main():
        async with serve() as dashboard, browse(chromium) as browser:
            for address in ("status", "status?token=wrong"):
                page = await browser.new_page()
                answer = await page.goto(dashboard.url(address))
                assert answer.status == 403
                assert "needs the job's token" in await page.inner_text("body")

    asyncio.run(main())


def test_a_page_from_another_port_reads_no_websocket(chromium, serve):
    """Browsers send a host's cookies to all its ports and let such a page open websockets with them.

    Bokeh's own websockets, as Dask sets them up, take pages from everywhere.
    """
    requests = []

    async def answer(reader, writer):
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\nConnection: close\r\n\r\nhere"
        )
        await writer.drain()
        writer.close()

    async def main():
        async with serve() as dashboard, listen(answer) as elsewhere, browse(chromium) as browser:
            profile = await browser.new_context()
            page = await profile.new_page()
            await page.goto(dashboard.url(f"info/main/workers.html?token={dashboard.token}"))
            socket = OPEN_WEBSOCKET.replace("ADDRESS", f"ws://127.0.0.1:{dashboard.port}/status/ws")
            assert await page.evaluate(socket) == "open"

            other = await profile.new_page()
            await other.goto(f"http://127.0.0.1:{elsewhere}/")
            name, _ = security.dashboard_cookie(dashboard.job.name, dashboard.token)
            assert f"Cookie: {name}=".encode() in requests[0]  # so the cookie alone would not do
            assert await other.evaluate(socket) == "refused"

    asyncio.run(main())
