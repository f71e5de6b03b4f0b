"""The endpoint: the addresses that a job publishes for its clients in `endpoint.json`, and the check of its JSON.

Boot makes one; clients read it, through `JobDirectory`. This module imports the errors alone.
"""

import json
import os
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from mpiboot.errors import RendezvousError

ENDPOINT_VERSION = 3
MAX_ENDPOINT_BYTES = 1024**2


class Endpoint(NamedTuple):
    """The cluster's addresses and sizes, published once the expected workers have answered.

    Attributes
    ----------
    job_id : str
        The batch system's name of the job.
    job_key : str
        Name of the job's directory.
    nonce : str
        Random; differs between two runs of one job.
    restart_count : int
        How often the batch system has requeued the job.
    scheduler_id : str
        Dask's id of the scheduler; the scheduler that answers at `address` must have the same.
    address : str
        The scheduler's address, such as `tls://10.0.0.1:41234`.
    dashboard : str
        Link to the dashboard, without its token.
    n_workers : int
        Workers that had answered.
    n_threads : int
        Threads of all workers together; nodes may differ.
    memory_bytes : int
        Memory limits of all workers together.
    nodes : list of str
        Names of the job's nodes; the first has the scheduler.
    interface : str
        Network interface of scheduler and workers.
    addresses : dict of str to str
        The first node's addresses on the interfaces that all nodes have, by name. The scheduler listens on one of them,
        the dashboard on all.
    prefix : str
        The prefix that the ranks run from: the staged prefix, or the source prefix with `--no-stage`.
    source_prefix : str
        The prefix on the shared file system.
    end_time : float or None
        End of the walltime in seconds since the epoch; None if the batch system reports no end.
    published : float
        When this was written, in seconds since the epoch.
    version : int
        Version of this schema.
    """

    job_id: str
    job_key: str
    nonce: str
    restart_count: int
    scheduler_id: str
    address: str
    dashboard: str
    n_workers: int
    n_threads: int
    memory_bytes: int
    nodes: list[str]
    interface: str
    addresses: dict[str, str]
    prefix: str
    source_prefix: str
    end_time: float | None
    published: float
    version: int = ENDPOINT_VERSION


# JSON does not distinguish 1 from 1.0.
_JSON_TYPES: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (int, float),
    float | None: (int, float, NoneType),
    list[str]: (list,),
    dict[str, str]: (dict,),
}


def new_nonce() -> str:
    """Make an `Endpoint.nonce`."""
    return os.urandom(8).hex()


def parse_endpoint(data: bytes, path: Path) -> Endpoint:
    """Read an endpoint from JSON.

    Parameters
    ----------
    data : bytes
        The text of the file, which may be damaged.
    path : Path
        Where it was read, for the message.

    Returns
    -------
    Endpoint
        Each field has the type that `Endpoint` declares.

    Raises
    ------
    RendezvousError
        The text is no endpoint, or one of another version.
    """
    try:
        content = json.loads(data)
        if content["version"] != ENDPOINT_VERSION:
            raise RendezvousError(
                f"{path} has version {content['version']!r}; this mpiboot reads version {ENDPOINT_VERSION}",
                "Use the same mpiboot in the job and here",
            )
        wrong = [
            name
            for name, kind in Endpoint.__annotations__.items()
            if not isinstance(content[name], _JSON_TYPES[kind]) or isinstance(content[name], bool)
        ]
        if wrong or not all(isinstance(address, str) for address in content["addresses"].values()):
            raise TypeError(f"wrong type of {', '.join(wrong) or 'addresses'}")
        endpoint = Endpoint(**{name: content[name] for name in Endpoint._fields})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RendezvousError(
            f"{path} is not an endpoint of mpiboot: {type(error).__name__}: {error}",
            "If the job has ended, remove the file; if it runs, stop it and submit again",
        ) from error
    return endpoint
