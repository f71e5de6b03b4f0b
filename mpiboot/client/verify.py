"""Verifies which scheduler answers at an address, before a Client connects, which could wait forever."""

from __future__ import annotations

import asyncio
import shlex
import sys
import threading
from dataclasses import dataclass
from typing import Any

from distributed import Security

from mpiboot.distributed_internals import ask_server
from mpiboot.errors import MpibootError, RendezvousError

# How long one attempt to reach a scheduler may take.
ATTEMPT_S = 4.0
# If the right scheduler has not answered at a published address for this long, stop trying.
SETTLE_S = 8.0


@dataclass(frozen=True)
class SchedulerIdentity:
    """The identity that a scheduler reports.

    Attributes
    ----------
    scheduler_id : str
        Dask's id of the scheduler; each scheduler has its own.
    n_workers : int
        Number of its connected workers.
    python : tuple of int
        Major and minor version of its Python.
    """

    scheduler_id: str
    n_workers: int
    python: tuple[int, int]


def ask_scheduler(address: str, security: Security | None, timeout_s: float) -> SchedulerIdentity:
    """Ask the scheduler at `address` who it is.

    Raises
    ------
    RendezvousError
        No scheduler that holds the job's certificate answered within `timeout_s` seconds.
    """
    try:
        arguments = security.get_connection_args("client") if security else {}
    except OSError as error:
        raise RendezvousError(
            f"the job's TLS files cannot be read: {error}", "See whether the job runs: mpiboot list"
        ) from error
    outcome: list[SchedulerIdentity | Exception] = []

    def ask() -> None:
        try:
            outcome.append(asyncio.run(asyncio.wait_for(_ask(address, arguments, timeout_s), timeout_s)))
        except Exception as error:  # another program that listens there may send anything
            outcome.append(error)

    # In a separate thread: in a notebook, the event loop of this thread is running.
    thread = threading.Thread(target=ask, name="mpiboot-verify", daemon=True)
    thread.start()
    thread.join()
    if isinstance(answer := outcome[0], SchedulerIdentity):
        return answer
    raise RendezvousError(
        f"no Dask scheduler answers at {address}: {_why(answer, timeout_s)}",
        "See whether its job runs: mpiboot list; check the network: mpiboot doctor",
    ) from answer


def check_identity(
    identity: SchedulerIdentity, scheduler_id: str, address: str, source_prefix: str | None
) -> None:
    """Check that the scheduler is the published one, and that it runs this minor version of Python.

    Raises
    ------
    RendezvousError
        Another scheduler listens there now.
    MpibootError
        It runs another minor version of Python, which cannot read the pickles of this one.
    """
    if identity.scheduler_id != scheduler_id:
        raise RendezvousError(
            f"{address} answers as {identity.scheduler_id}, not as {scheduler_id}: "
            "the cluster that was published there is gone",
            "See which jobs run: mpiboot list",
        )
    here = sys.version_info[:2]
    if identity.python != here:
        theirs, mine = (f"{major}.{minor}" for major, minor in (identity.python, here))
        raise MpibootError(
            f"the cluster runs Python {theirs} and this is {mine} ({sys.executable}): "
            "neither can read the other's pickles",
            f"Use the cluster's: {shlex.quote(f'{source_prefix}/bin/python')}"
            if source_prefix
            else f"Use a Python {theirs} here",
        )


def refuse_plain(address: str, insecure: bool) -> None:
    """Refuse an address without TLS, unless the user accepts it.

    Raises
    ------
    MpibootError
        `insecure` is false.
    """
    if not insecure:
        raise MpibootError(
            f"{address} is not encrypted: anyone on its network can use and change what you compute there",
            "If that is what you want, pass insecure=True, or type: mpiboot connect --insecure",
        )


def _why(error: BaseException, timeout_s: float) -> str:
    """Return the text of the innermost cause, the most precise one: distributed wraps it once or twice."""
    while error.__cause__ is not None:
        error = error.__cause__
    # A timeout at any level: the node may be gone, or something else listens there.
    if isinstance(error, (TimeoutError, asyncio.TimeoutError, asyncio.CancelledError)):
        return f"no answer within {timeout_s:g} s"
    return str(error) or type(error).__name__


async def _ask(address: str, arguments: dict[str, Any], timeout_s: float) -> SchedulerIdentity:
    # The attempt ends a little earlier than the wait for it, so that its own error is reported.
    identity, versions = await ask_server(
        address,
        {"identity": {"n_workers": 0}, "versions": {}},
        timeout_s=0.8 * timeout_s,
        connection_args=arguments,
    )
    host = dict(versions["host"])
    major, minor = str(host["python"]).split(".")[:2]
    return SchedulerIdentity(str(identity["id"]), int(identity["n_workers"]), (int(major), int(minor)))
