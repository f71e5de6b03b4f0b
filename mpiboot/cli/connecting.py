"""`mpiboot connect` and `dashboard`: the commands that lead to a running cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from mpiboot.cli.options import CommandWithExample, job_argument
from mpiboot.cli.output import echo_stderr, interrupted_with, progress_here, warn_insecure
from mpiboot.client.progress import in_terminal

if TYPE_CHECKING:
    from mpiboot.client.job import Job


@click.command(cls=CommandWithExample, epilog="mpiboot connect 1234 --timeout '5 min'")
@job_argument
@click.option(
    "--timeout", default="10 min", metavar="T", help="counted from the job's start [default: 10 min]"
)
@click.option(
    "--queue-timeout",
    metavar="T",
    help="counted from now, while the job is pending [default: as long as it may start]",
)
@click.option("--insecure", is_flag=True, help="accept a job that was submitted with --insecure")
def connect(job_or_name: str | None, timeout: str, queue_timeout: str | None, insecure: bool) -> None:
    """Wait for a job's workers; show how to connect to them."""
    again = f"mpiboot connect {job_or_name or ''}".rstrip()
    with interrupted_with(f"interrupted. Come back: {again}{' --insecure' if insecure else ''}"):
        _connect(job_or_name, timeout, queue_timeout, insecure)


def _connect(job_or_name: str | None, timeout: str, queue_timeout: str | None, insecure: bool) -> None:
    from mpiboot.client.find import find_job
    from mpiboot.client.settings import seconds_of

    for name, value in (("--timeout", timeout), ("--queue-timeout", queue_timeout)):
        if value is not None:
            seconds_of(name, value)
    if insecure:
        warn_insecure()
    job = find_job(job_or_name)
    with interrupted_with(job.how_to_come_back(insecure)):
        wait_and_show(job, timeout, queue_timeout, insecure)


def wait_and_show(job: Job, timeout: str, queue_timeout: str | None, insecure: bool) -> None:
    """Wait for a job's workers, with a progress display; then print how to connect to them."""
    from mpiboot.client import show
    from mpiboot.client.connect import connect as connect_to
    from mpiboot.client.settings import load_site
    from mpiboot.client.watch import count_workers

    with connect_to(
        job, timeout=timeout, queue_timeout=queue_timeout, insecure=insecure, progress=progress_here()
    ) as client:
        n_workers = count_workers(client)
    echo_stderr(show.ready(job, load_site("ssh_host"), with_token=in_terminal(), n_workers=n_workers))


@click.command(cls=CommandWithExample, epilog="mpiboot dashboard 1234 --open")
@job_argument
@click.option("--open", "open_browser", is_flag=True, help="open the link in a browser of this machine")
def dashboard(job_or_name: str | None, open_browser: bool) -> None:
    """Print the dashboard's link, and the ssh line that reaches it from home.

    The link holds the cluster's token: keep it to yourself.
    """
    from mpiboot.client import show
    from mpiboot.client.find import find_job
    from mpiboot.client.settings import load_site

    job = find_job(job_or_name)
    endpoint = show.endpoint_of(job)
    link = show.link(job, endpoint, with_token=True)
    click.echo(link)
    echo_stderr(f"from home:  {show.tunnel(endpoint, load_site('ssh_host'))}")
    echo_stderr(f"then open:  {show.link(job, endpoint, with_token=True, host='localhost')}")
    if open_browser:
        import webbrowser

        if link.startswith("/"):  # a path on a portal, whose name only the user's browser knows
            link = show.link(job, endpoint, with_token=True, host=urlsplit(endpoint.dashboard).hostname)
        webbrowser.open(show.redirect_page(job, link).as_uri())
