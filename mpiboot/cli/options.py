"""Options, arguments and help that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from envpack.common.paths import typed_path
from envpack.errors import ExplainedError, MalformedValueError
from mpiboot import config
from mpiboot.kinds import FLAG, PATH
from mpiboot.option import GROUPS, SUBMIT, Option


class CommandWithExample(click.Command):
    """A command whose help has its options in groups, and ends with its epilog as an example."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in (*GROUPS, "Options")}
        for parameter in self.get_params(ctx):
            option = config.OPTIONS.get(parameter.name or "")
            record = parameter.get_help_record(ctx)
            if record and isinstance(parameter, click.Option):
                groups[option.group if option else "Options"].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write(f"\nExample:\n  {self.epilog}\n")


class TypedPath(click.Path):
    """The path of a file that a command writes or reads, expanded as those of a job's options are."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return typed_path(value)
        except MalformedValueError as error:
            self.fail(str(error), param, ctx)


def complete_job_id(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from mpiboot.client.find import live_jobs

    try:
        return [job.job_id for job, _ in live_jobs(patience_s=0) if job.job_id.startswith(incomplete)]
    except ExplainedError:
        return []


job_argument = click.argument("job_or_name", metavar="[JOB]", required=False, shell_complete=complete_job_id)


def job_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the named options of a job to a command; without names, all options of `submit`."""
    options = [option for option in config.options_in(SUBMIT) if not names or option.name in names]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            names = [name for name in (option.short, option.flag, option.name) if name]
            command = click.option(*names, **_settings(option))(command)
        return command

    return decorate


def _settings(option: Option) -> dict[str, Any]:
    """Return click's settings for an option. `Option.parse` reads the value later, as one from a file."""
    settings: dict[str, Any] = {"help": option.full_help, "default": None}
    if option.kind is FLAG:
        return {**settings, "is_flag": True, "flag_value": True}
    settings |= {"metavar": option.metavar, "multiple": option.repeatable}
    if option.kind is PATH:
        settings["type"] = click.Path()
    if option.kind.choices:
        settings["shell_complete"] = lambda context, parameter, incomplete: [
            choice for choice in option.kind.choices if choice.startswith(incomplete)
        ]
    return settings


def typed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the user typed, empty texts too."""
    return {name: value for name, value in options.items() if value not in (None, False, ())}
