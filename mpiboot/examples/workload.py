"""What the workloads that ship with mpiboot share: a client as a user's script gets it, bounded waits, tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mpiboot.errors import ClusterLostError, DeadlineError, MpibootError, RendezvousError, UsageError

if TYPE_CHECKING:
    from distributed import Client

_LIVENESS_S = 5.0


def open_client(module: str, scheduler_file: str | None = None, *, insecure: bool = False) -> Client:
    """Connect as a script of a user would: by a verified scheduler file, else by a bare `Client()`.

    Parameters
    ----------
    module : str
        What the user ran, for the message.
    scheduler_file : str, optional
    insecure : bool, default False
        Accept a scheduler file that names a `tcp://` address.

    Raises
    ------
    UsageError
        No scheduler is named; a bare `Client()` would start a cluster of its own on this host.
    RendezvousError
        Nothing answers there.
    """
    if scheduler_file is not None:
        import mpiboot

        return mpiboot.connect(scheduler_file=scheduler_file, insecure=insecure)
    import dask.config
    from distributed import Client

    address = dask.config.get("scheduler-address", None)
    if not address:
        raise UsageError(
            f"DASK_SCHEDULER_ADDRESS names no scheduler; type: mpiboot submit -- python -m {module}, "
            "or give --scheduler-file FILE"
        )
    try:
        return Client()
    except OSError as error:
        raise RendezvousError(f"no scheduler answers at {address}: {error}; type: mpiboot status") from error


def settle(client: Client, futures: Any, timeout_s: float, *, needs: Iterable[str] = ()) -> None:
    """Wait until futures are done, `timeout_s` seconds at most.

    Parameters
    ----------
    client : distributed.Client
    futures : futures, or persisted collections
    timeout_s : float
        Seconds.
    needs : iterable of str, optional
        Addresses of workers without which the futures cannot be done.

    Raises
    ------
    DeadlineError
        They are not done by then.
    ClusterLostError
        The scheduler or a needed worker was lost meanwhile.
    """
    from distributed import CancelledError, wait

    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            with client.as_current():
                wait(futures, timeout=max(min(left_s, _LIVENESS_S), 0))
            return
        except CancelledError as error:
            raise ClusterLostError("the scheduler went away; type: mpiboot status") from error
        except TimeoutError as error:
            workers = client.nthreads()
            if lost := set(needs).difference(workers):
                raise ClusterLostError(
                    f"lost {len(lost)} of the workers that were computing: {', '.join(sorted(lost))}; "
                    "type: mpiboot logs"
                ) from error
            if left_s <= _LIVENESS_S:
                raise DeadlineError(
                    f"not done after {timeout_s:g} s, with {len(workers)} workers connected"
                ) from error


def gather(client: Client, futures: Any, timeout_s: float, *, needs: Iterable[str] = ()) -> Any:
    """Wait as `settle` does, and fetch the results.

    Raises
    ------
    MpibootError
        A task failed, or took its workers down with it.
    """
    settle(client, futures, timeout_s, needs=needs)
    try:
        return client.gather(futures)
    except Exception as error:
        raise MpibootError(f"a task failed on the workers: {error!r}; type: mpiboot logs") from error


def text_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table of at most 80 columns, numbers to the right.

    Returns
    -------
    str
        With colours only where stdout is a terminal.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        number = all(row[i].lstrip("-")[:1].isdigit() for row in rows)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    with console.capture() as capture:
        console.print(title, style="bold")
        console.print(table, width=min(80, console.width))
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()) + "\n"
