"""The options of a job as arguments of a Python call, for type checkers, editors, `help()` and notebooks.

`JobOptions` repeats the names of `mpiboot.config`, since a type checker runs no code; a test compares the two. Signatures
and docstrings are generated from `mpiboot.config` at import. `submit` and `MPICluster` use this.
"""

from __future__ import annotations

import inspect
import textwrap
import typing
from collections.abc import Sequence
from os import PathLike
from typing import Any, TypedDict, TypeVar

from mpiboot import config as configuration
from mpiboot.option import PYTHON, Option

T = TypeVar("T")


class JobOptions(TypedDict, total=False):
    """The options that `mpiboot.submit` and `mpiboot.MPICluster` take, with their types."""

    batch_system: str
    env: str | PathLike[str] | None
    nodes: int
    workers_per_node: int | None
    cpus_per_worker: int | None
    mem: str | int | None
    time: str | None
    partition: str | None
    account: str | None
    job_name: str
    interface: str
    scheduler_port: int | None
    worker_port: str | None
    dashboard_port: int | None
    mpi: str
    transport: str
    no_stage: bool
    pack_exclude: Sequence[str]
    idle_timeout: str | float
    min_workers: int
    warn_before: str | float
    env_var: Sequence[str]
    batch_arg: Sequence[str]
    insecure: bool
    dashboard_tls: bool
    dashboard_origins: str | None
    stage_root: str | PathLike[str]
    start_timeout: str | float
    setup: Sequence[str]
    job_script: str | PathLike[str] | None
    ssh_host: str | None
    command: Sequence[str]


TYPES = typing.get_type_hints(JobOptions)


def documented(target: T) -> T:
    """List every option in the signature and in the docstring of `target`, instead of `**options`.

    Parameters
    ----------
    target : function or class
        It takes `**options`, and its docstring has the line `**options` among the parameters.
    """
    function: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    parameters += [_parameter(option.name, option.default) for option in _options()]
    function.__signature__ = signature.replace(parameters=[*parameters, _parameter("command", ())])
    if target.__doc__:  # python -OO has none
        before, _, after = inspect.cleandoc(target.__doc__).partition("**options\n")
        target.__doc__ = before + "".join(map(_paragraph, _options())) + after.lstrip(" ")
    return target


def _options() -> list[Option]:
    return configuration.options_in(PYTHON)


def _parameter(name: str, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=TYPES[name])


def _paragraph(option: Option) -> str:
    """Return the option's paragraph in numpydoc form."""
    default = option.default
    if default in (None, ()):
        given = "optional"
    else:
        given = f"default {option.show_default() if isinstance(default, float) else default!r}"
    facts = [
        option.help[0].upper() + option.help[1:],
        f"One of {', '.join(option.kind.choices)}" if option.kind.choices else "",
        option.kind.units,
        f"Default: {option.default_words}" if option.default_words else "",
        f"Same as {option.same_as}" if option.same_as else "",
    ]
    text = " ".join(f"{fact}." for fact in facts if fact)
    body = textwrap.fill(text, 100, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return f"{option.name} : {_type_words(TYPES[option.name])}, {given}\n{body}\n"


def _type_words(annotation: Any) -> str:
    """Return the type in words: `str or float`, `sequence of str`."""
    if annotation == Sequence[str]:
        return "sequence of str"
    parts = [part for part in typing.get_args(annotation) if part is not type(None)] or [annotation]
    return " or ".join("path" if part == PathLike[str] else part.__name__ for part in parts)
