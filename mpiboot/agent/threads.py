"""Runs calls that may hang, such as those on a shared file system, in threads that the agent need not wait for.

Only the agent's modules import this one. It imports only the standard library.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def in_thread(timeout_s: float, act: Callable[..., Result], *arguments: Any) -> Result:
    """Call `act` in a thread of its own, and return its result.

    After a timeout the thread goes on, but does not keep the process from ending.

    Parameters
    ----------
    timeout_s : float, seconds
        How long to wait for the result.
    act : callable
        Called with `arguments`; its exceptions are raised here.

    Raises
    ------
    TimeoutError
        The call takes longer.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        try:
            result, error = act(*arguments), None
        except BaseException as raised:
            result, error = None, raised
        with contextlib.suppress(RuntimeError):  # the agent has ended
            loop.call_soon_threadsafe(finish, result, error)

    def finish(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, daemon=True).start()
    return await in_time(future, timeout_s)


async def in_time(work: Awaitable[Result], timeout_s: float) -> Result:
    """Wait for `work` for at most `timeout_s` seconds; then cancel it.

    asyncio.wait_for of Python 3.10 and 3.11 can lose a cancellation, and the task would go on for ever. This does not.

    Raises
    ------
    TimeoutError
        The work takes longer.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
    finally:
        task.cancel()
    if not done:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    return task.result()
