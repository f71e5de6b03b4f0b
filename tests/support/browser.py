"""A user's browser: Debian's Chromium, driven by Playwright; and the tunnels through which it reaches a cluster.

For the tests of dashboards and notebooks. Playwright downloads nothing: its Python package drives the system's Chromium.
"""

import asyncio
import contextlib
import os
import re
import shutil
import tempfile

import pytest
from playwright.async_api import async_playwright

WAIT_MS = 60_000
FLAGS = [
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"
]  # nothing leaves this host

# JavaScript that counts the coloured pixels on a page's canvases, including those in shadow roots.
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


@contextlib.asynccontextmanager
async def browse(chromium):
    """Give a browser, which ends with the block; each of its `new_context()` is a separate profile."""
    with tempfile.TemporaryDirectory(
        ignore_cleanup_errors=True
    ) as folder:  # Chromium leaves folders in its TMPDIR
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=chromium,
                args=FLAGS,
                chromium_sandbox=os.geteuid() != 0,  # the sandbox does not work as root
                env={**os.environ, "TMPDIR": folder},
            )
            async with browser:
                yield browser


async def becomes_true(page, expression, timeout_ms=WAIT_MS):
    """Wait until a JavaScript expression is true on the page."""
    await page.wait_for_function(expression, timeout=timeout_ms, polling=200)


@contextlib.asynccontextmanager
async def listen(answer):
    """Start a server on a free port, as another user of this host could."""
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


def portal(connect, host):
    """Serve as a portal before a dashboard does: like `tunnel`, but each request gets another Host header."""

    async def carry(reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            return
        head = re.sub(rb"(?mi)^Host: .*\r$", f"Host: {host}\r".encode(), head)
        head = re.sub(rb"(?mi)^Connection: keep-alive\r$", b"Connection: close\r", head)
        far_reader, far_writer = await connect()
        far_writer.write(head)
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    return carry


def tunnel(connect):
    """Forward a port like `ssh -L`, to the reader and writer that `connect` opens."""

    async def carry(reader, writer):
        far_reader, far_writer = await connect()
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    return carry
