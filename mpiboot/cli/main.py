"""The `mpiboot` command: puts the subcommands together, and turns errors into messages and exit statuses."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from envpack.errors import ExplainedError
from mpiboot.cli import checking, connecting, jobs, submitting
from mpiboot.cli.output import echo_stderr
from mpiboot.common.faults import unexpected
from mpiboot.protocol.variables import NO_COLOR


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    invoke_without_command=True,
)
@click.version_option(package_name="mpiboot")
@click.pass_context
def commands(context: click.Context) -> int | None:
    """One batch job, all its nodes, one connected Dask client.

    Completion of commands, options and job ids, for bash (zsh and fish alike):
    eval "$(_MPIBOOT_COMPLETE=bash_source mpiboot)"
    """
    if context.invoked_subcommand:
        return None
    echo_stderr(context.get_help())
    return 2


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def boot(arguments: tuple[str, ...]) -> int:
    """Runs inside a job: the job script calls it."""
    from mpiboot.boot.sequence import main

    return main(arguments)


for command in (
    *(submitting.submit, submitting.demo, submitting.jobscript),
    *(jobs.list_jobs, jobs.status, jobs.logs, jobs.stop),
    *(connecting.connect, connecting.dashboard),
    *(checking.doctor, boot),
):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line after `mpiboot`. Default: the arguments of this process.

    Returns
    -------
    int
        0: success; 1: an explained failure; 2: wrong usage; 124: a deadline or the walltime has passed; 130: interrupted;
        in batch mode the exit status of the user's command.
    """
    try:
        color = False if NO_COLOR in os.environ else None  # None: if the output is a terminal
        status = commands.main(args=arguments, prog_name="mpiboot", standalone_mode=False, color=color)
        return status if isinstance(status, int) else 0
    except ExplainedError as error:
        echo_stderr(f"mpiboot: {error}")
        return error.exit_status
    except click.UsageError as error:
        command_path = error.ctx.command_path if error.ctx else "mpiboot"
        echo_stderr(f"mpiboot: {error.format_message()}\nSee: {command_path} --help")
        return error.exit_code
    except OSError as error:
        echo_stderr(f"mpiboot: {error}")
        return 1
    except (click.Abort, KeyboardInterrupt) as error:
        # click raises Abort from a Ctrl-C.
        echo_stderr(f"mpiboot: {str(error.__cause__ or error) or 'interrupted'}")
        return 130
    except Exception as error:
        echo_stderr(f"mpiboot: {unexpected(error)}")
        return 1
