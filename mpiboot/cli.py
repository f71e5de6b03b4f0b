"""The command line: parses, prints, and turns errors into exit statuses. Nothing else does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from importlib.resources import as_file
from typing import Any

import click

from mpiboot import config as configuration
from mpiboot.errors import MpibootError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 80}


def say(line: str) -> None:
    """Everything but results goes to stderr."""
    click.echo(line, err=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The one boundary between errors and exit statuses."""
    from envpack.errors import EnvpackError

    try:
        status = command_line.main(args=arguments, prog_name="mpiboot", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except MpibootError as error:
        say(f"mpiboot: {error}")
        return error.exit_status
    except EnvpackError as error:
        say(f"mpiboot: {error}")
        return 1
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        say("mpiboot: interrupted")
        return 130


class Lines(click.Command):
    """A command whose epilog, the example, keeps its lines."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write(f"\nExample:\n  {self.epilog}\n")


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="mpiboot")
def command_line() -> None:
    """One batch job, all its nodes, one connected Dask client."""


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All options of a job, from the one list of them."""
    for name, option in reversed(configuration.OPTIONS.items()):
        if option.metadata["where"] == "boot":
            continue
        settings: dict[str, Any] = {"help": option.metadata["help"], "default": None}
        if option.metadata["parse"] is configuration.flag:
            settings |= {"is_flag": True, "flag_value": True}
        else:
            settings |= {"metavar": option.metadata["metavar"], "multiple": name in configuration.REPEATABLE}
        command = click.option(configuration.flag_name(name), name, **settings)(command)
    return command


@command_line.command(cls=Lines, epilog="mpiboot submit --nodes 2 --workers-per-node 4 --interface ib0")
@job_options
@click.option("--dry-run", is_flag=True, help="print the command that would submit, and do nothing")
@click.option("--wait", is_flag=True, help="wait until the workers are there; Ctrl-C leaves the job alone")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND ARG...]")
def submit(dry_run: bool, wait: bool, command: tuple[str, ...], **options: Any) -> int:
    """Submit one job that becomes one Dask cluster; prints its id.

    With COMMAND, runs it on the first node once the workers are there, and ends with it.
    """
    from mpiboot import jobs
    from mpiboot.batch import choose

    given = {name: value or None for name, value in options.items()}
    config = jobs.load_config({**given, "command": command})
    if config.insecure:
        click.secho("--insecure: anyone who reaches the job's nodes can run code as you", fg="red", err=True)
    if dry_run:
        batch = choose(config.batch_system)
        with as_file(jobs.script_of(batch.name)) as script:
            click.echo(jobs.show_command(jobs.submit_command(config, batch, script)))
        return 0
    job = jobs.submit_config(config, say=say)
    click.echo(job.job_id)
    if wait:
        _wait_until_ready(job, timeout="10 min")
    return 0


def _wait_until_ready(job: Any, timeout: str) -> None:
    from mpiboot.client import connect

    try:
        client = connect(job, timeout=timeout, progress=say)
    except KeyboardInterrupt:
        say(
            f"job {job.job_id} goes on. Come back: mpiboot connect {job.job_id}; end it: mpiboot stop {job.job_id}"
        )
        raise
    client.close()
    endpoint = job.endpoint
    say(
        f"ready: {endpoint.n_workers} workers of {endpoint.threads_per_worker} threads on "
        f"{len(endpoint.nodes)} node(s): {', '.join(endpoint.nodes)}\n"
        f"  connect:  client = mpiboot.connect({job.job_id!r})\n"
        f"  stop:     mpiboot stop {job.job_id}"
    )


@command_line.command(cls=Lines, epilog="mpiboot connect 1234 --timeout '5 min'")
@click.argument("job", required=False)
@click.option("--timeout", default="10 min", metavar="T", show_default=True)
def connect(job: str | None, timeout: str) -> None:
    """Wait for a job's workers and say how it went, as a notebook would."""
    from mpiboot.jobs import find_job

    _wait_until_ready(find_job(job), timeout)


@command_line.command("list", cls=Lines, epilog="mpiboot list --json")
@click.option("--json", "as_json", is_flag=True, help="for programs")
def list_jobs(as_json: bool) -> None:
    """Show this user's live jobs."""
    from mpiboot import jobs

    live = jobs.live_jobs()
    if as_json:
        rows = [
            {"job_id": job.job_id, "state": state.state, "name": state.name, "nodes": state.nodes}
            for job, state in live
        ]
        click.echo(json.dumps(rows))
    elif live:
        click.echo(jobs.describe(live))


@command_line.command(cls=Lines, epilog="mpiboot status 1234")
@click.argument("job", required=False)
@click.option("--json", "as_json", is_flag=True, help="for programs")
@click.option("--plot", metavar="FILE", help="draw the timeline (needs matplotlib)")
def status(job: str | None, as_json: bool, plot: str | None) -> None:
    """Show a job's state, and its phases with their times."""
    from pathlib import Path

    from mpiboot import timeline
    from mpiboot.jobs import find_job

    found = find_job(job)
    state = found.ask()
    events = found.directory.read_events()
    if plot:
        timeline.plot(timeline.phases(events), Path(plot))
    if as_json:
        click.echo(
            json.dumps(
                {"job_id": found.job_id, "state": state.state, "reason": state.reason, "events": events}
            )
        )
        return
    click.echo(f"job {found.job_id}: {state.state} {state.reason}".rstrip())
    if events:
        click.echo(timeline.render_text(timeline.phases(events)))


@command_line.command(cls=Lines, epilog="mpiboot logs 1234 -f")
@click.argument("job", required=False)
@click.option("-f", "--follow", is_flag=True, help="go on until the job ends")
def logs(job: str | None, follow: bool) -> None:
    """Show a job's logs."""
    from mpiboot.jobs import find_job, poll_interval_s

    found = find_job(job)
    click.echo(found.logs(), nl=False)
    shown = {path: path.stat().st_size for path in found.log_files()}
    start = time.monotonic()
    while follow and found.ask().live:
        time.sleep(poll_interval_s(time.monotonic() - start))
        for path in found.log_files():
            with path.open("rb") as file:
                file.seek(shown.get(path, 0))
                new = file.read()
            shown[path] = shown.get(path, 0) + len(new)
            click.echo(new.decode(errors="replace"), nl=False)


@command_line.command(cls=Lines, epilog="mpiboot stop 1234")
@click.argument("job", required=False)
def stop(job: str | None) -> None:
    """End a job; returns when its nodes are released."""
    from mpiboot.jobs import find_job

    found = find_job(job)
    state = found.stop()
    say(f"job {found.job_id}: {state.state}")


@command_line.command(cls=Lines, epilog="mpiboot jobscript slurm > my-job.sh")
@click.argument("batch_system", default="slurm")
def jobscript(batch_system: str) -> None:
    """Print the job script of a batch system, to copy and edit."""
    from mpiboot.jobs import script_of

    click.echo(script_of(batch_system).read_text(), nl=False)


@command_line.command(cls=Lines, epilog="mpiboot demo")
@job_options
def demo(**options: Any) -> int:
    """Run the main job: real flights on a cluster of this machine, from packing to tear-down."""
    from mpiboot.demo import main_job
    from mpiboot.jobs import load_config, submit_config

    given = {name: value or None for name, value in options.items()}
    config = load_config(
        {"batch_system": "local", "workers_per_node": 2, **{k: v for k, v in given.items() if v}}
    )
    job = submit_config(config, say=say)
    say(f"job {job.job_id}")
    try:
        from mpiboot.client import connect

        with connect(job, progress=say) as client:
            main_job(client, events=job.directory.read_events())
    finally:
        state = job.stop()
        say(f"job {job.job_id}: {state.state}")
    return 0


@command_line.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def boot(arguments: tuple[str, ...]) -> int:
    """Inside the job: the job script calls it."""
    from mpiboot.boot import main

    return main(arguments)
