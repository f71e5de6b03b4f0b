"""Headless Chromium, spoken to over its DevTools protocol."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from tornado.websocket import websocket_connect

FLAGS = [
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",  # nothing leaves this host
    "--remote-debugging-port=0",
    "--window-size=1200,900",
]

# What a page has drawn on its canvases, shadow roots included: how many pixels are coloured.
COLOURED_PIXELS = """
(() => {
    const canvases = root => [...root.querySelectorAll("*")].flatMap(
        element => element.shadowRoot ? canvases(element.shadowRoot) : element.tagName == "CANVAS" ? [element] : [])
    let found = 0
    for (const canvas of canvases(document)) {
        if (!canvas.width || !canvas.height) continue
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
        for (let i = 0; i < pixels.length; i += 4) {
            const rgb = pixels.slice(i, i + 3)
            found += pixels[i + 3] > 100 && Math.max(...rgb) - Math.min(...rgb) > 40
        }
    }
    return found
})()
"""


@pytest.fixture
def chromium():
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "there is no Chromium here: apt-get install --no-install-recommends chromium"
        (pytest.fail if os.environ.get("MPIBOOT_REQUIRE_CLUSTER") == "1" else pytest.skip)(reason)
    return path


class Page:
    """One page of a browser, in a profile of its own unless told otherwise."""

    def __init__(self, browser, profile, session):
        self.browser, self.profile, self.session = browser, profile, session

    async def go(self, url):
        await self.browser.call("Page.navigate", self.session, url=url)
        await self.until("document.readyState == 'complete' && location.href != 'about:blank'")

    async def evaluate(self, expression):
        answer = await self.browser.call(
            "Runtime.evaluate", self.session, expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression, timeout_s=60.0):
        deadline = time.monotonic() + timeout_s
        while not (value := await self.evaluate(expression)):
            assert time.monotonic() < deadline, f"{expression}: not within {timeout_s} s"
            await asyncio.sleep(0.2)
        return value

    async def picture(self, path):
        shot = await self.browser.call("Page.captureScreenshot", self.session)
        Path(path).write_bytes(base64.b64decode(shot["data"]))


class Browser:
    def __init__(self, socket):
        self.socket, self.ids = socket, itertools.count()

    async def call(self, method, session=None, **parameters):
        number = next(self.ids)
        message = {"id": number, "method": method, "params": parameters}
        await self.socket.write_message(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            text = await asyncio.wait_for(self.socket.read_message(), 60)
            assert text is not None, f"{method}: Chromium is gone"
            answer = json.loads(text)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    async def page(self, profile=None):
        profile = profile or (await self.call("Target.createBrowserContext"))["browserContextId"]
        target = await self.call("Target.createTarget", url="about:blank", browserContextId=profile)
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        return Page(self, profile, attached["sessionId"])


@contextlib.asynccontextmanager
async def browse(chromium):
    # Its sockets' paths must be short, so not in pytest's folder.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            chromium,
            *FLAGS,
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # the sandbox refuses root
            f"--user-data-dir={folder}",
            "about:blank",
            env={**os.environ, "TMPDIR": folder},  # killed, it leaves folders there
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            port_file = Path(folder, "DevToolsActivePort")
            for _ in range(600):
                if port_file.exists() and len(port_file.read_text().split()) == 2:
                    break
                assert process.returncode is None, "Chromium ended before it was ready"
                await asyncio.sleep(0.1)
            port, path = port_file.read_text().split()
            socket = await websocket_connect(f"ws://127.0.0.1:{port}{path}", max_message_size=2**28)
            try:
                yield Browser(socket)
            finally:
                socket.close()
                await asyncio.wait_for(socket.read_message(), 10)  # its answer, or it counts as left open
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@contextlib.asynccontextmanager
async def listen(answer):
    """A server on a port of its own, as another user of this host could run one."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def copy(reader, writer):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def tunnel(connect):
    """What `ssh -L` does: bytes go on to what `connect` opens, a reader and a writer."""

    async def carry(reader, writer):
        far_reader, far_writer = await connect()
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    return carry
