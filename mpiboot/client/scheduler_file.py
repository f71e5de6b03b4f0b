"""Connects to a cluster that was started by hand, using Dask's own scheduler file."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

from distributed import Client, Security

from mpiboot.client.progress import Progress
from mpiboot.client.verify import ATTEMPT_S, SETTLE_S, ask_scheduler, check_identity, refuse_plain
from mpiboot.client.watch import FILE_POLL_S, closed_on_error, count_workers
from mpiboot.common.trust import open_trusted
from mpiboot.common.units import show_duration
from mpiboot.errors import DeadlineError, RendezvousError
from mpiboot.protocol.endpoint import MAX_ENDPOINT_BYTES
from mpiboot.protocol.secrets import client_security_arguments


def connect_scheduler_file(
    path: Path, n_workers: int | None, timeout_s: float, insecure: bool, tell: Progress
) -> Client:
    """Connect to the cluster of a scheduler file; wait for a missing file until the timeout.

    Raises RendezvousError if the file is still empty or half-written, or its cluster still does not answer, after
    `SETTLE_S` seconds: a scheduler listens before it writes its file, and writes all of it at once.

    Raises
    ------
    RendezvousError
        The file cannot be trusted, or its scheduler does not answer.
    DeadlineError
        After `timeout_s` seconds, there is no such file, or the cluster has fewer than `n_workers` workers.
    """
    deadline = time.monotonic() + timeout_s
    content, since = b"", time.monotonic()
    while True:
        settled = False
        try:
            latest = open_trusted(path, MAX_ENDPOINT_BYTES, secret=False)
            if latest != content:
                content, since = latest, time.monotonic()
            settled = time.monotonic() - since > SETTLE_S
            client = _connect_to(path, content, insecure)
            break
        except FileNotFoundError:
            content, problem = b"", "it does not exist"
        except RendezvousError as error:
            problem = error.problem
            if settled:
                raise RendezvousError(f"scheduler file {path}: {problem}", _start_again(path)) from error
        tell(f"scheduler file {path}: {problem}")
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"scheduler file {path}: {problem}, after {show_duration(timeout_s)}",
                "Start the cluster, or wait longer with timeout=",
            )
        time.sleep(FILE_POLL_S)
    wanted = n_workers or 0
    with closed_on_error(client):
        while (n_present := count_workers(client) or 0) < wanted:
            progress = f"scheduler file {path}: {n_present} of {wanted} workers"
            tell(progress)
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"{progress}, after {show_duration(timeout_s)}",
                    "Wait longer with timeout=, or for fewer workers with n_workers=",
                )
            time.sleep(FILE_POLL_S)
    return client


def _connect_to(path: Path, content: bytes, insecure: bool) -> Client:
    """Return a client of the scheduler that wrote `content`, after verifying its identity."""
    try:
        fields = json.loads(content)
        address, scheduler_id = str(fields["address"]), str(fields["id"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RendezvousError(
            "it is empty, half-written, or no scheduler file", _start_again(path)
        ) from error
    if not address.startswith("tls://"):
        refuse_plain(address, insecure)
        security = None
    else:
        security = _security_for(path)
    check_identity(ask_scheduler(address, security, ATTEMPT_S), scheduler_id, address, None)
    return Client(address, security=security, timeout=3 * ATTEMPT_S)


def _start_again(path: Path) -> str:
    """Return the remedy for a scheduler file whose cluster cannot be reached."""
    return f"Start the cluster again, after: rm {shlex.quote(str(path))}"


def _security_for(path: Path) -> Security:
    """Return the TLS settings for a scheduler file: those of its mpiboot job, else those of Dask's configuration."""
    if (path.parent / "tls").is_dir():
        return Security(**client_security_arguments(path.parent))
    return Security()
