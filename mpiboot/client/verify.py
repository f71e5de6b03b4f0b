"""Who answers at an address? Asked before a Client is made, which would wait for ever where something else listens."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

from distributed import Security
from distributed.comm import connect

from mpiboot.errors import RendezvousError


@dataclass(frozen=True)
class Answer:
    """What a scheduler says of itself; `python` is its version."""

    scheduler_id: str
    n_workers: int
    python: tuple[int, int]


def ask_scheduler(address: str, security: Security | None, timeout_s: float) -> Answer:
    """Ask the scheduler at `address` who it is.

    Raises
    ------
    RendezvousError
        Nobody answers there within `timeout_s`, or no scheduler that holds the job's certificate.
    """
    try:
        arguments = security.get_connection_args("client") if security else {}
    except OSError as error:
        raise RendezvousError(f"the job's TLS files cannot be read: {error}") from error
    outcome: list[Answer | Exception] = []

    def ask() -> None:
        try:
            outcome.append(asyncio.run(asyncio.wait_for(_ask(address, arguments, timeout_s), timeout_s)))
        except Exception as error:  # whatever listens there may send anything
            outcome.append(error)

    # A thread of its own: in a notebook this one's event loop is running.
    thread = threading.Thread(target=ask, name="mpiboot-verify", daemon=True)
    thread.start()
    thread.join()
    if isinstance(answer := outcome[0], Answer):
        return answer
    raise RendezvousError(f"no Dask scheduler answers at {address}: {_why(answer, timeout_s)}") from answer


def _why(error: BaseException, timeout_s: float) -> str:
    """The cause that says most: distributed wraps it once or twice."""
    while error.__cause__ is not None:
        error = error.__cause__
    # A wait that ran out, at whichever level: the node may be gone, or something else listen there.
    if isinstance(error, (TimeoutError, asyncio.TimeoutError, asyncio.CancelledError)):
        return f"nothing was heard within {timeout_s:g} s"
    return str(error) or type(error).__name__


async def _ask(address: str, arguments: dict[str, Any], timeout_s: float) -> Answer:
    # The attempt itself ends a little earlier, so that its own error is seen.
    comm = await connect(address, timeout=0.8 * timeout_s, **arguments)
    try:
        identity = await _exchange(comm, "identity")
        versions = await _exchange(comm, "versions")
    finally:
        comm.abort()
    host = dict(versions["host"])
    major, minor = str(host["python"]).split(".")[:2]
    return Answer(str(identity["id"]), len(identity["workers"]), (int(major), int(minor)))


async def _exchange(comm: Any, operation: str) -> dict[str, Any]:
    await comm.write({"op": operation, "reply": True})
    answer: dict[str, Any] = await comm.read()
    return answer
