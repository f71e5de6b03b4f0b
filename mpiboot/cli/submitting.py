"""`mpiboot submit`, `demo` and `jobscript`: the commands that submit a job, or show how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mpiboot.batch import registry
from mpiboot.cli.connecting import wait_and_show
from mpiboot.cli.options import CommandWithExample, job_options, typed_options
from mpiboot.cli.output import echo_stderr, interrupted_with, progress_here, warn_insecure
from mpiboot.option import SUBMIT

if TYPE_CHECKING:
    from mpiboot.client.job import Job


# What follows the command's name is the command's, with or without `--`.
@click.command(
    cls=CommandWithExample,
    epilog="mpiboot submit --nodes 2 --workers-per-node 4 --interface ib0",
    context_settings={"allow_interspersed_args": False},
)
@job_options()
@click.option("--dry-run", is_flag=True, help="print the command that would submit, and do nothing")
@click.option(
    "--wait",
    is_flag=True,
    help="wait for the workers, or with COMMAND for its end; after Ctrl-C the job goes on",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND ARG...]")
def submit(dry_run: bool, wait: bool, command: tuple[str, ...], **options: Any) -> int:
    """Submit one job that becomes one Dask cluster; print its id.

    With COMMAND, the job runs it on the first node when the workers have started, and ends with it.
    """
    from mpiboot.client.settings import load_config
    from mpiboot.client.submit import show_submission, submit_config

    config = load_config({**typed_options(options), "command": command}, SUBMIT)
    if config.insecure:
        warn_insecure()
    if dry_run:
        click.echo(show_submission(config, say=echo_stderr))
        return 0
    with interrupted_with("interrupted. See whether a job was submitted: mpiboot list"):
        job = submit_config(config, say=echo_stderr)
    with interrupted_with(job.how_to_come_back(config.insecure)):
        click.echo(job.job_id)
        if wait and command:
            return _wait_for_command(job)
        if wait:
            wait_and_show(job, timeout="10 min", queue_timeout=None, insecure=config.insecure)
    return 0


def _wait_for_command(job: Job) -> int:
    """Wait for the end of a job in batch mode; return the exit status of its command."""
    from mpiboot.client.batch_mode import wait_for_command

    state = wait_for_command(job, progress_here())
    echo_stderr(f"job {job.job_id}: {state.show()}")
    if outputs := job.log_files():
        echo_stderr(f"its output: {outputs[0]}")
    else:
        echo_stderr("\n".join(job.why_no_log(state)))
    return job.exit_status()


@click.command(cls=CommandWithExample, epilog="mpiboot demo")
@job_options()
def demo(**options: Any) -> int:
    """Run the demo: real flights on a cluster of this machine, from packing to tear-down."""
    from mpiboot.client.connect import connect
    from mpiboot.client.settings import load_config
    from mpiboot.client.submit import submit_config
    from mpiboot.examples.demo import main_job

    config = load_config({"batch_system": "local", "workers_per_node": 2, **typed_options(options)}, SUBMIT)
    if config.insecure:
        warn_insecure()
    job = submit_config(config, say=echo_stderr)
    echo_stderr(f"job {job.job_id}")
    try:
        with connect(job, insecure=config.insecure, progress=echo_stderr) as client:
            main_job(client, events=job.directory.read_events())
    finally:
        state = job.stop()
        echo_stderr(f"job {job.job_id}: {state.state}")
    return 0


@click.command(cls=CommandWithExample, epilog=f"mpiboot jobscript {registry.NAMES[0]} > my-job.sh")
@click.argument("batch_system", default=registry.NAMES[0])
def jobscript(batch_system: str) -> None:
    """Print the job script of a batch system, to copy and edit."""
    from mpiboot.client.submit import shipped_script

    click.echo(shipped_script(batch_system).read_text(), nl=False)
