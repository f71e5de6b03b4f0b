"""Connects to a cluster that was started by hand, by Dask's own scheduler file."""

from __future__ import annotations

import json
import time
from pathlib import Path

from distributed import Client, Security

from mpiboot.client.progress import Progress
from mpiboot.client.verify import ask_scheduler
from mpiboot.client.watch import (
    ATTEMPT_S,
    FILE_POLL_S,
    SETTLE_S,
    check_answer,
    closed_on_error,
    count_workers,
    refuse_plain,
)
from mpiboot.common.trust import open_trusted
from mpiboot.common.units import show_duration
from mpiboot.errors import (
    DeadlineError,
    RendezvousError,
)
from mpiboot.protocol.endpoint import MAX_ENDPOINT_BYTES
from mpiboot.protocol.secrets import client_security_arguments


def connect_scheduler_file(
    path: Path, n_workers: int | None, timeout_s: float, insecure: bool, tell: Progress
) -> Client:
    """Connect to a cluster that was started by hand, by Dask's own scheduler file.

    A missing file is waited for until the timeout. One that stays empty, half-written, or of a cluster that does
    not answer any more is given up soon: a scheduler listens before it writes its file, in one go.
    """
    deadline = time.monotonic() + timeout_s
    content, since = b"", time.monotonic()
    while True:
        settled = False
        try:
            found = open_trusted(path, MAX_ENDPOINT_BYTES, secret=False)
            if found != content:
                content, since = found, time.monotonic()
            settled = time.monotonic() - since > SETTLE_S
            client = _connect_to(path, found, insecure)
            break
        except FileNotFoundError:
            content, problem = b"", "it does not exist"
        except RendezvousError as error:
            problem = str(error)
            if settled:
                raise RendezvousError(
                    f"scheduler file {path}: {problem}. Remove it, and start the cluster"
                ) from error
        tell(f"scheduler file {path}: {problem}")
        if time.monotonic() > deadline:
            raise DeadlineError(f"scheduler file {path}: {problem}, after {show_duration(timeout_s)}")
        time.sleep(FILE_POLL_S)
    wanted = n_workers or 0
    with closed_on_error(client):
        while (there := count_workers(client) or 0) < wanted:
            got = f"scheduler file {path}: {there} of {wanted} workers"
            tell(got)
            if time.monotonic() > deadline:
                raise DeadlineError(f"{got}, after {show_duration(timeout_s)}")
            time.sleep(FILE_POLL_S)
    return client


def _connect_to(path: Path, content: bytes, insecure: bool) -> Client:
    """A client of the very scheduler that wrote `content`."""
    try:
        found = json.loads(content)
        address, scheduler_id = str(found["address"]), str(found["id"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RendezvousError("it is empty, half-written, or no scheduler file") from error
    if not address.startswith("tls://"):
        refuse_plain(address, insecure)
        security = None
    else:
        security = _security_for(path)
    check_answer(ask_scheduler(address, security, ATTEMPT_S), scheduler_id, address, None)
    return Client(address, security=security, timeout=3 * ATTEMPT_S)


def _security_for(path: Path) -> Security:
    """The TLS files beside the scheduler file of a job of mpiboot's, else those of Dask's configuration."""
    if (path.parent / "tls").is_dir():
        return Security(**client_security_arguments(path.parent))
    return Security()
