"""`mpiboot list`, `status`, `logs` and `stop`: the commands about jobs that were submitted."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from mpiboot.cli.options import CommandWithExample, TypedPath, job_argument
from mpiboot.cli.output import echo_stderr


@click.command("list", cls=CommandWithExample, epilog="mpiboot list --json")
@click.option("--json", "as_json", is_flag=True, help="for programs")
def list_jobs(as_json: bool) -> None:
    """Show your live jobs."""
    from mpiboot.client import show
    from mpiboot.client.find import live_jobs

    live = live_jobs()
    if as_json:
        click.echo(json.dumps([{**asdict(state), "batch_system": job.batch.name} for job, state in live]))
    elif live:
        click.echo(show.table(live))
    else:
        echo_stderr("no mpiboot job is pending or running")


@click.command(cls=CommandWithExample, epilog="mpiboot status 1234")
@job_argument
@click.option("--json", "as_json", is_flag=True, help="for programs")
@click.option("--plot", metavar="FILE", type=TypedPath(), help="draw the timeline (needs matplotlib)")
def status(job_or_name: str | None, as_json: bool, plot: str | None) -> None:
    """Show the state of a job, and the phases of its boot with their times."""
    from mpiboot.client import show, timeline
    from mpiboot.client.find import find_job

    job = find_job(job_or_name)
    state = job.ask()
    events = job.directory.read_events()
    phases = timeline.phases(events)
    if plot:
        timeline.plot_phases(phases, plot)
    if as_json:
        click.echo(
            json.dumps({**asdict(state), "phases": [asdict(phase) for phase in phases], "events": events})
        )
    else:
        click.echo(show.status(job, state))


@click.command(cls=CommandWithExample, epilog="mpiboot logs 1234 -f")
@job_argument
@click.option("-f", "--follow", is_flag=True, help="go on until the job ends")
def logs(job_or_name: str | None, follow: bool) -> None:
    """Show the logs of a job."""
    from mpiboot.client.find import find_job

    job = find_job(job_or_name)
    for text in job.follow() if follow else [job.logs()]:
        click.echo(text, nl=False)


@click.command(cls=CommandWithExample, epilog="mpiboot stop 1234")
@job_argument
def stop(job_or_name: str | None) -> None:
    """End a job; return when its nodes are released."""
    from mpiboot.client.find import find_job

    job = find_job(job_or_name)
    echo_stderr(f"job {job.job_id}: {job.stop().show()}")
