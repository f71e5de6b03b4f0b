"""Ends of the channel for tests: certificates, a running listener, and a count of what is open."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from mpiboot.boot.certificates import make_job_secrets
from mpiboot.protocol.channel import Connection, server_context
from mpiboot.protocol.listener import Listener

Result = TypeVar("Result")


def make_tls(folder: Path) -> Path:
    """Make a job's secrets below `folder`; return the folder of the TLS files."""
    folder.chmod(0o700)
    make_job_secrets(folder, valid_for_s=3600.0)
    return folder / "tls"


def descriptors() -> int:
    """Return the number of this process's open descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))


def sockets() -> set[str]:
    """Return what names each of this process's open sockets, as other tests' leftovers may close at any time."""
    names = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            names.add(os.readlink(path))  # noqa: PTH115
    return {name for name in names if name.startswith("socket:")}


def run(work: Coroutine[Any, Any, Result], timeout_s: float = 60.0) -> Result:
    """Run a coroutine, and check that it leaves no descriptor open. A ResourceWarning fails the test, too."""
    gc.collect()
    before = descriptors()
    result = asyncio.run(asyncio.wait_for(work, timeout_s))
    gc.collect()
    # Threads that an earlier test has left may open files, and close them, meanwhile.
    give_up_at = time.monotonic() + 10.0
    while descriptors() > before:
        assert time.monotonic() < give_up_at, f"{descriptors()} descriptors are open, {before} before"
        time.sleep(0.05)
    return result


@contextlib.asynccontextmanager
async def listening(
    tls: Path, serve: Callable[[Connection], Awaitable[None]], host: str = "127.0.0.1", n_peers: int = 1
) -> AsyncIterator[Listener]:
    """A listener that runs within the block."""
    listener = Listener(host, server_context(tls), serve, n_peers)
    task = asyncio.create_task(listener.run())
    try:
        yield listener
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        listener.close()


async def until(done: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Return once `done()` is true; fail after `timeout_s` seconds."""
    give_up_at = asyncio.get_running_loop().time() + timeout_s
    while not done():
        assert asyncio.get_running_loop().time() < give_up_at, f"no {what} within {timeout_s:g} s"
        await asyncio.sleep(0.01)
