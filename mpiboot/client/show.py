"""Text about jobs for the command line, in 80 columns; links are never broken."""

from __future__ import annotations

import contextlib
import getpass
import html
import os
import shutil
import socket
import textwrap
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask

from mpiboot.batch.job_state import JobState
from mpiboot.client import timeline
from mpiboot.client.job import Job
from mpiboot.client.reach import reached_dashboard
from mpiboot.common.units import show_duration
from mpiboot.errors import BatchError, UsageError
from mpiboot.protocol import secrets as security
from mpiboot.protocol.endpoint import Endpoint
from mpiboot.protocol.events import last_event

COLUMNS = 80
USUAL_LINK = "{scheme}://{host}:{port}/status"  # distributed.yaml
FAULTS_SHOWN = 5
# Room for the last column of a table.
REASON_COLUMNS = 16
# Scheduler and nanny both report a worker that ended; two reports within this time are about the same worker.
SAME_LOSS_S = 10.0


def ready(job: Job, ssh_host: str | None, *, with_token: bool, n_workers: int | None = None) -> str:
    """Return what a user needs once the workers are connected: addresses, the ssh command, how to stop.

    Parameters
    ----------
    job : Job
    ssh_host : str or None
        The host that the user reaches by ssh from home; None: this host.
    with_token : bool
        Whether the link contains the cluster's token, which opens the dashboard to everyone who sees the link.
    n_workers : int, optional
        How many workers there are now. Default: as many as were ready.
    """
    endpoint = endpoint_of(job)
    job_id, nodes = job.job_id, endpoint.nodes
    lost = f"{n_workers} of " if n_workers is not None and n_workers < endpoint.n_workers else ""
    head = f"job {job_id} is ready: {lost}{endpoint.n_workers} workers, {endpoint.n_threads} cores, {len(nodes)} node(s)"
    arguments = f'"{job_id}"' if endpoint.address.startswith("tls://") else f'"{job_id}", insecure=True'
    named = [*nodes[:8], *([f"and {len(nodes) - 8} more"] if len(nodes) > 8 else [])]
    on = textwrap.wrap(f"{', '.join(named)}, over {endpoint.interface}", COLUMNS - 13, break_on_hyphens=False)
    rows = [
        *zip(["nodes", *[""] * len(on)], on, strict=False),
        ("connect", f"client = mpiboot.connect({arguments})"),
        ("dashboard", link(job, endpoint, with_token=with_token)),
        ("from home", tunnel(endpoint, ssh_host)),
        ("", f"then {link(job, endpoint, with_token=with_token, host='localhost')}"),
        *([] if with_token else [("", f"the link with its token: mpiboot dashboard {job_id}")]),
        ("ends", ends(endpoint.end_time)),
        ("stop", f"mpiboot stop {job_id}"),
    ]
    return "\n".join([head, *(f"  {name:<11}{text}" for name, text in rows)])


def endpoint_of(job: Job) -> Endpoint:
    """Return the endpoint of a job that is ready.

    Raises
    ------
    BatchError
        The job is not ready, or has ended.
    """
    endpoint = job.endpoint
    state = job.ask(max_age_s=5)
    if not state.live:
        raise BatchError(
            f"job {job.job_id} has ended: {state.show()}; its dashboard is gone",
            f"Read its logs: mpiboot logs {job.job_id}",
        )
    if endpoint is None:
        raise BatchError(
            f"job {job.job_id} is {state.show()}, and not ready", f"Wait for it: mpiboot connect {job.job_id}"
        )
    return endpoint._replace(dashboard=reached_dashboard(endpoint))


def link(job: Job, endpoint: Endpoint, *, with_token: bool, host: str | None = None) -> str:
    """Return the dashboard's address. An address with the token gives access to the cluster."""
    url = urllib.parse.urlsplit(endpoint.dashboard)
    shown = url._replace(netloc=f"{host}:{url.port}") if host else urllib.parse.urlsplit(_through_portal(url))
    if with_token and endpoint.address.startswith("tls://"):
        shown = shown._replace(
            query=urllib.parse.urlencode({"token": security.read_token(job.directory.path)})
        )
    return shown.geturl()


def _through_portal(url: urllib.parse.SplitResult) -> str:
    """Return the dashboard's address as Dask's setting `distributed.dashboard.link` shows it, such as through a portal.

    Raises
    ------
    UsageError
        The setting names a variable that is not set.
    """
    template = str(dask.config.get("distributed.dashboard.link", USUAL_LINK))
    if template == USUAL_LINK:
        return url.geturl()
    try:
        return template.format(**{**os.environ, "scheme": url.scheme, "host": url.hostname, "port": url.port})
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"distributed.dashboard.link {template!r} in Dask's configuration: {error} is unknown",
            "Use {scheme}, {host}, {port}, or the name of an environment variable that is set",
        ) from error


def tunnel(endpoint: Endpoint, ssh_host: str | None) -> str:
    """Return the ssh command that forwards a port at home, of the same number, to the dashboard."""
    url = urllib.parse.urlsplit(endpoint.dashboard)
    host = ssh_host or socket.getfqdn()
    with contextlib.suppress(KeyError, OSError):  # no name for this user id, as in a container
        host = host if "@" in host else f"{getpass.getuser()}@{host}"
    return f"ssh -N -L {url.port}:{url.hostname}:{url.port} {host}"


def ends(end_time: float | None) -> str:
    """Return when a job ends, in words; `end_time` is in seconds since the epoch."""
    if end_time is None:
        return "when it is stopped, or unused for long"
    left = show_duration(max(0.0, end_time - time.time()))
    return f"{time.strftime('%a %d %b %H:%M', time.localtime(end_time))}, in {left}"


def terminal_width() -> int:
    """Return the terminal's width in columns; 80 if the output is no terminal."""
    return max(40, shutil.get_terminal_size((COLUMNS, 24)).columns)


def table(jobs: Sequence[tuple[Job, JobState]]) -> str:
    """Return a table of jobs, one line per job, as wide as the terminal; `state.end` of an ended job is when it ended."""
    width = terminal_width()
    all_live = all(state.live for _, state in jobs)
    times, why = (
        ("LEFT", "NODES, OR WHY IT WAITS") if all_live else ("TIME", "NODES, OR WHY IT WAITS OR ENDED")
    )
    rows = [("JOB", "NAME", "STATE", times, why)]
    for job, state in jobs:
        why = state.nodes if state.live and state.nodes else state.reason
        rows.append((job.job_id, one_line(state.name), state.state, _time(state, all_live), one_line(why)))
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    # A narrow terminal has no room for all: the name goes first, then the time; what can be typed again stays whole.
    for n in (1, 3):
        if sum(widths[:4]) + 8 + REASON_COLUMNS > width:
            widths[n] = 0
    shown = [n for n in range(4) if widths[n]]
    lines = ["  ".join([*(f"{row[n]:<{widths[n]}}" for n in shown), row[4]]).rstrip() for row in rows]
    width = max(width, widths[0] + 1)
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def _time(state: JobState, all_live: bool) -> str:
    """Return how long a job still runs, or how long ago it ended, in words; "" if that is not known."""
    if state.end is None or state.pending:
        return ""
    if not state.live:
        return f"{show_duration(max(0.0, time.time() - state.end))} ago"
    left = show_duration(max(0.0, state.end - time.time()))
    return left if all_live else f"{left} left"


def one_line(text: str) -> str:
    """Return a text for one line of a terminal: a job's name may hold line breaks and control characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def redirect_page(job: Job, link: str) -> Path:
    """Write a page that only the user can read and that leads to the dashboard, and return its path.

    Every user of the machine can read a browser's command line, so the link with its token must not be in it.
    """
    page = job.directory.dashboard_page
    page.unlink(missing_ok=True)
    with os.fdopen(os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f'<meta http-equiv="refresh" content="0; url={html.escape(link)}">')
    return page


def status(job: Job, state: JobState) -> str:
    """Return a job's state, its workers, its faults, and its phases with their times."""
    lines = [f"job {job.job_id}: {state.show()}"]
    if state.pending and state.start:
        lines.append(f"may start {time.strftime('%a %d %b %H:%M', time.localtime(state.start))}")
    events = job.directory.read_events()
    last = last_event(events)
    if state.running and last["event"] == "closed":
        lines.append(f"closed: {last['reason']}; the batch system still has to end the job")
    elif state.running:
        endpoint = job.endpoint
        counts = ("worker", "lost-worker", "retired-worker")
        counted = [event["n"] for event in events if event["event"] in counts]
        expected = endpoint.n_workers if endpoint else job.expected_workers()
        over = f", over {endpoint.interface}" if endpoint else ""
        of = f" of {expected}" if expected else ""
        lines.append(f"{counted[-1] if counted else 0}{of} workers on {state.nodes}{over}")
        lines.append(f"ends {ends(state.end)}")
    elif state.nodes and not state.live and not job.log_files():
        lines += job.why_no_log(state)
    lines += faults(events)
    if events:
        lines.append(timeline.render_text(timeline.phases(events), min(COLUMNS, terminal_width())))
    return "\n".join(lines)


def faults(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return the last faults in a job's events, each wrapped into lines."""
    exits = [(e["rank"], e["time"]) for e in events if e["event"] == "worker-exit"]
    described = [
        (event, what)
        for event in events
        if (what := fault(event))
        and not (
            event["event"] == "lost-worker"
            and any(rank == event["rank"] and abs(at - event["time"]) < SAME_LOSS_S for rank, at in exits)
        )
    ]
    lines = [f"the last {FAULTS_SHOWN} of {len(described)} faults:"] if len(described) > FAULTS_SHOWN else []
    for event, what in described[-FAULTS_SHOWN:]:
        host = f" {event['host']}" if event.get("host") else ""
        rank = f" rank {event['rank']}" if event.get("rank") is not None else ""
        start = f"{time.strftime('%H:%M:%S', time.localtime(event['time']))}{host}{rank}: "
        done = f"; {event['done']}" if event.get("done") else ""
        lines += textwrap.wrap(start + what + done, min(COLUMNS, terminal_width()), subsequent_indent="  ")
    return lines


def fault(event: dict[str, Any]) -> str | None:
    """Return what happened, in words; None if the event is no fault."""
    match event["event"]:
        case "worker-exit":
            return f"the worker ended {event['how']}"
        case "lost-worker":
            return "the worker is lost"
        case "hung-worker":
            return f"the worker hung, silent for {show_duration(event['silent_s'])}"
        case "lost-node":
            return "no worker is left on this node"
        case "agent-silent":
            return f"boot has lost its connection to this node's agent: {event['detail']}"
        case "agent-back":
            return f"boot is connected to this node's agent again: {event['detail']}"
        case "lost-agent":
            return f"this node's agent is lost: {event['detail']}"
        case "launcher-ended":
            return f"mpirun ended with status {event['status']}"
    return None
