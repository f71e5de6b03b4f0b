"""`mpiboot list`, `status`, `logs`, `stop` and `gc`: the commands about jobs that were submitted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

import click

from envpack.errors import ExplainedError
from mpiboot.cli.options import CommandWithExample, TypedPath, complete_job_id, job_argument
from mpiboot.cli.output import echo_stderr
from mpiboot.common.units import show_size


@click.command("list", cls=CommandWithExample, epilog="mpiboot list --all")
@click.option("--all", "with_ended", is_flag=True, help="also those that ended in the last 7 days, and how")
@click.option("--json", "as_json", is_flag=True, help="for programs")
def list_jobs(with_ended: bool, as_json: bool) -> None:
    """Show your live jobs."""
    from mpiboot.client import show
    from mpiboot.client.find import live_jobs

    jobs = live_jobs()
    if with_ended:
        from mpiboot.client.past import past_jobs

        jobs = past_jobs({job.directory.key for job, _ in jobs}) + jobs
    if as_json:
        click.echo(json.dumps([{**asdict(state), "batch_system": job.batch.name} for job, state in jobs]))
    elif jobs:
        click.echo(show.table(jobs))
    else:
        echo_stderr("no mpiboot job is pending or running" + with_ended * ", or has ended in the last 7 days")


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


@click.command(cls=CommandWithExample, epilog="mpiboot logs 1234 --tail 20")
@job_argument
@click.option("-f", "--follow", is_flag=True, help="go on until the job ends")
@click.option(
    "--tail",
    type=click.IntRange(min=0),
    metavar="N",
    help="the last N lines of each log [default: its last MiB]",
)
def logs(job_or_name: str | None, follow: bool, tail: int | None) -> None:
    """Show the logs of a job, each below its file's name."""
    from mpiboot.client.find import find_job

    job = find_job(job_or_name)
    shown = False
    for text in job.follow(tail) if follow else filter(None, [job.logs(tail)]):
        shown = True
        click.echo(text, nl=False)
    if not shown:
        state = job.ask()
        echo_stderr(f"job {job.job_id} has no logs: {state.show()}")
        if state.nodes and not state.live:
            echo_stderr("\n".join(job.why_no_log(state)))


@click.command(cls=CommandWithExample, epilog="mpiboot stop 1234 1235")
@click.argument("jobs_or_names", metavar="[JOB...]", nargs=-1, shell_complete=complete_job_id)
def stop(jobs_or_names: tuple[str, ...]) -> int:
    """End a job, or several; return when their nodes are released."""
    from mpiboot.client.find import find_job

    if len(jobs_or_names) < 2:
        job = find_job(*jobs_or_names)
        echo_stderr(f"job {job.job_id}: {job.stop().show()}")
        return 0
    return _stop_all(dict.fromkeys(jobs_or_names))


def _stop_all(names: Iterable[str]) -> int:
    """Ask all jobs to end before waiting for the first; return 1 if one of them could not be ended."""
    from mpiboot.client.find import find_job

    jobs, failed = {}, False
    for name in names:
        try:
            job = find_job(name)
            job.request_stop()
            jobs[job.directory.key] = job
        except ExplainedError as error:
            failed = True
            echo_stderr(f"mpiboot: {name}: {error}")
    for job in jobs.values():
        try:
            echo_stderr(f"job {job.job_id}: {job.wait_for_stop().show()}")
        except ExplainedError as error:
            failed = True
            echo_stderr(f"mpiboot: job {job.job_id}: {error}")
    return int(failed)


@click.command(cls=CommandWithExample, epilog="mpiboot gc --older-than 7d --dry-run")
@click.option("--older-than", metavar="T", help="keep what ended within this time: 12h, 7d")
@click.option("--dry-run", is_flag=True, help="show what would be removed, and remove nothing")
def gc(older_than: str | None, dry_run: bool) -> int:
    """Remove what ended jobs have left: directories, logs, old archives.

    Jobs that are live, or not known to have ended, keep everything. What was removed is printed with its size.
    """
    from mpiboot.client.gc import gc as remove_leftovers
    from mpiboot.client.settings import seconds_of

    older_than_s = seconds_of("--older-than", older_than) if older_than is not None else 0.0
    total, failed = 0, False
    for removal in remove_leftovers(older_than_s, dry_run=dry_run):
        if removal.problem:
            failed = True
            echo_stderr(f"mpiboot: {removal.path} could not be removed: {removal.problem}")
        else:
            total += removal.size_bytes
            click.echo(f"{show_size(removal.size_bytes):>9}  {removal.path} ({removal.owner})")
    echo_stderr(f"{show_size(total)} {'would be removed' if dry_run else 'removed'}")
    return int(failed)
