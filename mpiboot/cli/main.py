"""The command line: parses, prints, and turns errors into exit statuses. Nothing else does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from mpiboot import config as configuration
from mpiboot.errors import MpibootError
from mpiboot.protocol.variables import NO_COLOR

if TYPE_CHECKING:
    from mpiboot.client.job import Job

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 80}


def say(line: str) -> None:
    """Everything but results goes to stderr."""
    click.echo(line, err=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The one boundary between errors and exit statuses."""
    from envpack.errors import EnvpackError

    try:
        color = False if NO_COLOR in os.environ else None  # None: where the output is a terminal
        status = command_line.main(args=arguments, prog_name="mpiboot", standalone_mode=False, color=color)
        return status if isinstance(status, int) else 0
    except MpibootError as error:
        say(f"mpiboot: {error}")
        return error.exit_status
    except (EnvpackError, OSError) as error:
        say(f"mpiboot: {error}")
        return 1
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt) as error:
        say(
            f"mpiboot: {str(error.__cause__ or error) or 'interrupted'}"
        )  # click wraps a Ctrl-C into its Abort
        return 130


class Lines(click.Command):
    """A command whose epilog, the example, keeps its lines."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write(f"\nExample:\n  {self.epilog}\n")


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="mpiboot")
def command_line() -> None:
    """One batch job, all its nodes, one connected Dask client.

    Completion of commands, options and job ids, for bash (zsh and fish alike):
    eval "$(_MPIBOOT_COMPLETE=bash_source mpiboot)"
    """


def live_job_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """For the shell's completion."""
    from mpiboot.client.find import live_jobs

    try:
        return [job.job_id for job, _ in live_jobs(patience_s=0) if job.job_id.startswith(incomplete)]
    except MpibootError:
        return []


job_argument = click.argument("job", required=False, shell_complete=live_job_ids)


def job_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of a job: those named, or all that submit takes."""
    options = [
        option
        for option in configuration.options_in(configuration.SUBMIT)
        if not names or option.name in names
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = click.option(option.flag, option.name, **_settings(option))(command)
        return command

    return decorate


def _settings(option: configuration.Option) -> dict[str, Any]:
    """The option as click has it; its value is parsed later, with those of files and of the environment."""
    settings: dict[str, Any] = {"help": option.full_help, "default": None}
    if option.kind is configuration.FLAG:
        return {**settings, "is_flag": True, "flag_value": True}
    settings |= {"metavar": option.metavar, "multiple": option.repeatable}
    if option.kind is configuration.PATH:
        settings["type"] = click.Path()
    if option.kind.choices:
        settings["shell_complete"] = lambda context, parameter, incomplete: [
            choice for choice in option.kind.choices if choice.startswith(incomplete)
        ]
    return settings


@command_line.command(cls=Lines, epilog="mpiboot submit --nodes 2 --workers-per-node 4 --interface ib0")
@job_options()
@click.option("--dry-run", is_flag=True, help="print the command that would submit, and do nothing")
@click.option(
    "--wait", is_flag=True, help="wait for the workers, with COMMAND for its end; Ctrl-C leaves the job alone"
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND ARG...]")
def submit(dry_run: bool, wait: bool, command: tuple[str, ...], **options: Any) -> int:
    """Submit one job that becomes one Dask cluster; prints its id.

    With COMMAND, runs it on the first node once the workers are there, and ends with it.
    """
    from mpiboot.client.settings import load_config
    from mpiboot.client.submit import show_submission, submit_config

    given = {name: value or None for name, value in options.items()}
    config = load_config({**given, "command": command})
    if config.insecure:
        warn_insecure()
    if dry_run:
        click.echo(show_submission(config, say=say))
        return 0
    job = submit_config(config, say=say)
    click.echo(job.job_id)
    if wait and command:
        return _wait_until_ended(job)
    if wait:
        _wait_until_ready(job, timeout="10 min", queue_timeout=None, insecure=config.insecure)
    return 0


def warn_insecure() -> None:
    click.secho("--insecure: anyone who reaches the job's nodes can run code as you", fg="red", err=True)


def _wait_until_ended(job: Job) -> int:
    """Batch mode: the command's exit status."""
    from mpiboot.client.watch import how_to_come_back

    try:
        state = job.wait()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_come_back(job)) from None
    say(f"job {job.job_id}: {state.show()}")
    for output in job.log_files()[:1]:
        say(f"its output: {output}")
    return job.exit_status()


def _wait_until_ready(job: Job, timeout: str, queue_timeout: str | None, insecure: bool) -> None:
    from mpiboot.client import show
    from mpiboot.client.connect import connect
    from mpiboot.client.settings import load_site

    display = None if sys.stderr.isatty() else say
    connect(job, timeout=timeout, queue_timeout=queue_timeout, insecure=insecure, progress=display).close()
    say(show.ready(job, load_site("ssh_host"), with_token=sys.stderr.isatty()))


@command_line.command(cls=Lines, epilog="mpiboot connect 1234 --timeout '5 min'")
@job_argument
@click.option("--timeout", default="10 min", metavar="T", show_default=True, help="from the job's start")
@click.option("--queue-timeout", metavar="T", help="from now, while it is pending")
@click.option("--insecure", is_flag=True, help="accept a job that was submitted with --insecure")
def connect(job: str | None, timeout: str, queue_timeout: str | None, insecure: bool) -> None:
    """Wait for a job's workers and say how it went, as a notebook would."""
    from mpiboot.client.connect import seconds_of
    from mpiboot.client.find import find_job

    for name, value in (("--timeout", timeout), ("--queue-timeout", queue_timeout)):
        if value is not None:
            seconds_of(name, value)
    if insecure:
        warn_insecure()
    _wait_until_ready(find_job(job), timeout, queue_timeout, insecure)


@command_line.command(cls=Lines, epilog="mpiboot dashboard 1234 --open")
@job_argument
@click.option("--open", "open_it", is_flag=True, help="open the link in a browser of this machine")
def dashboard(job: str | None, open_it: bool) -> None:
    """Print the dashboard's link, and the ssh line that reaches it from home.

    The link holds the cluster's token: it is a key, for you alone.
    """
    from mpiboot.client import show
    from mpiboot.client.find import find_job
    from mpiboot.client.settings import load_site

    found = find_job(job)
    endpoint = show.endpoint_of(found)
    link = show.link(found, endpoint, with_token=True)
    click.echo(link)
    say(f"from home:  {show.tunnel(endpoint, load_site('ssh_host'))}")
    say(f"then open:  {show.link(found, endpoint, with_token=True, host='localhost')}")
    if open_it:
        import webbrowser

        webbrowser.open(show.redirect_page(found, link).as_uri())


@command_line.command("list", cls=Lines, epilog="mpiboot list --json")
@click.option("--json", "as_json", is_flag=True, help="for programs")
def list_jobs(as_json: bool) -> None:
    """Show this user's live jobs."""
    from dataclasses import asdict

    from mpiboot.client import show
    from mpiboot.client.find import live_jobs

    live = live_jobs()
    if as_json:
        click.echo(json.dumps([{**asdict(state), "batch_system": job.batch.name} for job, state in live]))
    elif live:
        click.echo(show.table(live))
    else:
        say("no job of mpiboot's is pending or running")


@command_line.command(cls=Lines, epilog="mpiboot status 1234")
@job_argument
@click.option("--json", "as_json", is_flag=True, help="for programs")
@click.option("--plot", metavar="FILE", help="draw the timeline (needs matplotlib)")
def status(job: str | None, as_json: bool, plot: str | None) -> None:
    """Show a job's state, and its phases with their times."""
    from dataclasses import asdict

    from mpiboot.client import show, timeline
    from mpiboot.client.find import find_job

    found = find_job(job)
    state = found.ask()
    events = found.directory.read_events()
    phases = timeline.phases(events)
    if plot:
        timeline.plot(phases, plot)
    if as_json:
        shown = {**asdict(state), "phases": [asdict(phase) for phase in phases], "events": events}
        click.echo(json.dumps(shown))
    else:
        click.echo(show.status(found, state))


@command_line.command(cls=Lines, epilog="mpiboot logs 1234 -f")
@job_argument
@click.option("-f", "--follow", is_flag=True, help="go on until the job ends")
def logs(job: str | None, follow: bool) -> None:
    """Show a job's logs."""
    from mpiboot.client.find import find_job

    found = find_job(job)
    if not follow:
        click.echo(found.logs(), nl=False)
        return
    for text in found.follow():
        click.echo(text, nl=False)


@command_line.command(cls=Lines, epilog="mpiboot stop 1234")
@job_argument
def stop(job: str | None) -> None:
    """End a job; returns when its nodes are released."""
    from mpiboot.client.find import find_job

    found = find_job(job)
    say(f"job {found.job_id}: {found.stop().show()}")


@command_line.command(cls=Lines, epilog="mpiboot doctor --env ~/envs/analysis --job-test")
@job_options("env", "partition", "account", "interface", "time", "nodes", "batch_system", "mpi", "batch_arg")
@click.option("--job-test", is_flag=True, help="check the same on two nodes, in a job")
def doctor(job_test: bool, **options: Any) -> int:
    """Check this site; each failed line names its remedy."""
    from mpiboot.client import doctor as examination
    from mpiboot.client.settings import load_config

    config = load_config({name: value or None for name, value in options.items()})
    return examination.run(config, job_test=job_test, out=click.echo)


@command_line.command(cls=Lines, epilog="mpiboot jobscript slurm > my-job.sh")
@click.argument("batch_system", default="slurm")
def jobscript(batch_system: str) -> None:
    """Print the job script of a batch system, to copy and edit."""
    from mpiboot.client.submit import shipped_script

    click.echo(shipped_script(batch_system).read_text(), nl=False)


@command_line.command(cls=Lines, epilog="mpiboot demo")
@job_options()
def demo(**options: Any) -> int:
    """Run the main job: real flights on a cluster of this machine, from packing to tear-down."""
    from mpiboot.client.settings import load_config
    from mpiboot.client.submit import submit_config
    from mpiboot.examples.demo import main_job

    given = {name: value or None for name, value in options.items()}
    config = load_config(
        {"batch_system": "local", "workers_per_node": 2, **{k: v for k, v in given.items() if v}}
    )
    if config.insecure:
        warn_insecure()
    job = submit_config(config, say=say)
    say(f"job {job.job_id}")
    try:
        from mpiboot.client.connect import connect

        with connect(job, insecure=config.insecure, progress=say) as client:
            main_job(client, events=job.directory.read_events())
    finally:
        state = job.stop()
        say(f"job {job.job_id}: {state.state}")
    return 0


@command_line.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def boot(arguments: tuple[str, ...]) -> int:
    """Inside the job: the job script calls it."""
    from mpiboot.boot.sequence import main

    return main(arguments)
