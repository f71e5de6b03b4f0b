"""Waiting with a limit."""

import asyncio
import threading
import time

import pytest

from mpiboot.agent.threads import in_thread, in_time


def test_a_call_in_a_thread_returns_raises_or_takes_too_long():
    async def work():
        assert await in_thread(10.0, lambda a, b: a + b, 1, 2) == 3
        with pytest.raises(LookupError, match="none"):
            await in_thread(10.0, {}.__getitem__, "none")
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            await in_thread(0.05, time.sleep, 0.5)

    before = threading.enumerate()
    asyncio.run(work())
    for thread in set(threading.enumerate()) - set(before):
        thread.join()  # the one that took too long ends without an error


@pytest.mark.parametrize("steps", range(6))
def test_who_is_cancelled_as_the_wait_ends_ends(steps):
    """wait_for of Python 3.10 and 3.11 would go on."""

    async def wait_again_and_again(event):
        while True:
            await in_time(event.wait(), 10.0)
            event.clear()

    async def work():
        event = asyncio.Event()
        task = asyncio.create_task(wait_again_and_again(event))
        for _ in range(3):
            await asyncio.sleep(0)
        event.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=5.0)
        assert task.cancelled()

    asyncio.run(work())


def test_what_takes_too_long_is_cancelled():
    async def work():
        task = asyncio.ensure_future(asyncio.sleep(60.0))
        with pytest.raises(TimeoutError):
            await in_time(task, 0.01)
        await asyncio.wait({task}, timeout=5.0)
        assert task.cancelled()

    asyncio.run(work())
