"""Waits for futures, until a deadline or the loss of the scheduler or a worker. The examples use this module."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mpiboot.errors import ClusterLostError, DeadlineError, MpibootError

if TYPE_CHECKING:
    from distributed import Client

_LIVENESS_S = 5.0


def wait_for(client: Client, futures: Any, timeout_s: float, *, needs: Iterable[str] = ()) -> None:
    """Wait until futures are done.

    Parameters
    ----------
    client : distributed.Client
    futures : futures or persisted collections
    timeout_s : float
        How long to wait, in seconds.
    needs : iterable of str, optional
        Addresses of workers without which the futures cannot be done.

    Raises
    ------
    DeadlineError
        They are not done after `timeout_s`.
    ClusterLostError
        The scheduler or a needed worker was lost.
    """
    # Dask's TimeoutError is asyncio's, which is not the built-in one before Python 3.11.
    from distributed import CancelledError, TimeoutError, wait

    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            with client.as_current():
                wait(futures, timeout=max(min(left_s, _LIVENESS_S), 0))
            return
        except CancelledError as error:
            raise ClusterLostError(
                "the scheduler was lost", "See the state of its job: mpiboot status"
            ) from error
        except TimeoutError as error:
            workers = client.nthreads()
            if lost := set(needs).difference(workers):
                raise ClusterLostError(
                    f"lost {len(lost)} of the workers that were computing: {', '.join(sorted(lost))}",
                    "Read why: mpiboot logs",
                ) from error
            if left_s <= _LIVENESS_S:
                raise DeadlineError(
                    f"the computation is not done after {timeout_s:g} s, with {len(workers)} workers connected",
                    "Read why: mpiboot logs",
                ) from error


def gather(client: Client, futures: Any, timeout_s: float, *, needs: Iterable[str] = ()) -> Any:
    """Wait for futures as `wait_for` does, and return their results.

    Raises
    ------
    MpibootError
        A task failed, or its workers died while they ran it.
    """
    wait_for(client, futures, timeout_s, needs=needs)
    try:
        return client.gather(futures)
    except Exception as error:
        raise MpibootError(f"a task failed on the workers: {error!r}", "Read more: mpiboot logs") from error
