"""The `mpiboot` command: puts the subcommands together, and turns errors into messages and exit statuses."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence

import click

from envpack.errors import ExplainedError
from mpiboot.cli import checking, connecting, jobs, submitting
from mpiboot.cli.output import echo_stderr, encode_everything
from mpiboot.common.faults import system_error, unexpected
from mpiboot.config import OPTIONS
from mpiboot.protocol.variables import NO_COLOR


class CommandGroups(click.Group):
    """The commands, under headings in the help."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, members in COMMANDS.items():
            rows = [(str(each.name), each.get_short_help_str(limit=60)) for each in members]
            with formatter.section(heading):
                formatter.write_dl(rows)


@click.group(
    cls=CommandGroups,
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


class RawArguments(click.Command):
    """A command that gets its arguments as typed; click would drop the `--` before the command of batch mode."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.params["arguments"] = tuple(args)
        return args


@click.command(cls=RawArguments, add_help_option=False)
def boot(arguments: tuple[str, ...]) -> int:
    """Runs inside a job: the job script calls it."""
    from mpiboot.boot.sequence import main

    return main(arguments)


COMMANDS = {
    "Start a cluster": (submitting.submit, submitting.demo, submitting.jobscript),
    "Use it": (connecting.connect, connecting.dashboard),
    "Look after it": (jobs.list_jobs, jobs.status, jobs.logs, jobs.stop, jobs.gc),
    "This site": (checking.doctor,),
    "Inside a job": (boot,),
}
for command in (command for members in COMMANDS.values() for command in members):
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
    encode_everything()
    try:
        color = False if NO_COLOR in os.environ else None  # None: if the output is a terminal
        status = commands.main(args=arguments, prog_name="mpiboot", standalone_mode=False, color=color)
        return status if isinstance(status, int) else 0
    except ExplainedError as error:
        echo_stderr(f"mpiboot: {error}")
        return error.exit_status
    except click.UsageError as error:
        typed = sys.argv[1:] if arguments is None else arguments
        echo_stderr(f"mpiboot: {usage_problem(error, typed)}")
        return error.exit_code
    except OSError as error:
        echo_stderr(f"mpiboot: {system_error(error)}")
        return 1
    except (click.Abort, KeyboardInterrupt) as error:
        # click raises Abort from a Ctrl-C.
        echo_stderr(f"mpiboot: {str(error.__cause__ or error) or 'interrupted'}")
        return 130
    except Exception as error:
        return unexpected_failure(error)


def usage_problem(error: click.UsageError, arguments: Sequence[str]) -> str:
    """Return the problem and its remedy, in one line."""
    name = arguments[0] if arguments and arguments[0] in commands.commands else ""
    see = f"mpiboot {name} --help".replace("  ", " ")
    if isinstance(error, click.NoSuchOption):
        typed = error.option_name
        flags = [flag for each in commands.commands.get(name, commands).params for flag in each.opts]
        same = [option.flag for option in OPTIONS.values() if option.same_as.endswith(f" {typed}")]
        if meant := same or difflib.get_close_matches(typed, flags, n=1, cutoff=0.75):
            return f"there is no option {typed} (did you mean {meant[0]}?). See: {see}"
        if "--batch-arg" in flags:
            return f"there is no option {typed}. One of the batch system's: --batch-arg={typed}; ours: {see}"
    problem = " ".join(error.format_message().split()).removesuffix(".")
    return f"{problem}{'' if problem.endswith('?') else '.'} See: {see}"


def unexpected_failure(error: Exception) -> int:
    """Show an error that nobody has foreseen, in one line; return the exit status."""
    from mpiboot.client.dask_options import import_distributed

    try:
        import_distributed()
    except ExplainedError as reason:  # of the user's files or variables; every import of it fails
        echo_stderr(f"mpiboot: {reason}")
        return reason.exit_status
    echo_stderr(f"mpiboot: {unexpected(error)}")
    return 1
