"""Merges a job's options: arguments, environment, Dask's configuration files, defaults; the first has precedence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from envpack.errors import MalformedValueError
from mpiboot import config as configuration
from mpiboot.batch.sizing import check_memory, check_min_workers
from mpiboot.client import dask_options
from mpiboot.config import Config
from mpiboot.errors import UsageError
from mpiboot.kinds import DURATION
from mpiboot.option import PYTHON, Kind
from mpiboot.protocol import prefix_checks


def load_config(options: Mapping[str, Any], place: str = PYTHON) -> Config:
    """Return a job's options: the given ones, and the others from the environment, the configuration files and defaults.

    Parameters
    ----------
    options : mapping
        Values by option name, and `command`.
    place : str
        Where they stand: `option.PYTHON` or `option.SUBMIT`.

    Raises
    ------
    UsageError
        An option is unknown, has a value of the wrong type, or does not fit the others.
    EnvironmentUnfitError
        No environment is given, and none is active.
    """
    given = {name: value for name, value in options.items() if name != "command"}
    configuration.check_names(given, place)
    merged = configuration.make_config(
        *site_layers(), configuration.parse_layer(given, place), command=parse_command(options.get("command"))
    )
    prefix = Path(merged.env) if merged.env else prefix_checks.active_prefix()
    check_memory(merged.mem, merged.workers_per_node or 1)
    if (
        merged.workers_per_node and not merged.batch_arg
    ):  # an argument of the batch system may ask for other nodes
        check_min_workers(merged.min_workers, merged.nodes * merged.workers_per_node)
    return replace(merged, env=str(prefix.absolute()))


def parse_command(command: Any) -> tuple[str, ...]:
    """Return the command of batch mode, as texts.

    Raises
    ------
    UsageError
        It is no list of texts, paths and numbers.
    """
    if command is None:
        return ()
    remedy = "Write a list of texts, such as ['python', 'analysis.py']"
    if not isinstance(command, list | tuple):
        raise UsageError(f"command={command!r} is not a list", remedy)
    for word in command:
        is_text = isinstance(word, str | os.PathLike | int | float) and not isinstance(word, bool)
        if not is_text or "\0" in str(word):
            raise UsageError(f"command: {word!r} is not a text that can be an argument", remedy)
    if command and not str(command[0]):
        raise UsageError("command: the name of the program is empty", remedy)
    return tuple(map(str, command))


def site_layers() -> list[dict[str, Any]]:
    """Return the parsed options of Dask's files, of the environment, and of `dask.config.set`; the last has precedence.

    Raises
    ------
    UsageError
        A name is unknown, or a value does not fit its option. The message names the file or the variable.
    """
    files, program = dask_options.layers(os.environ)
    return [files, configuration.environment_layer(os.environ), program]


def load_site(name: str) -> Any:
    """Return one option of the site, such as `ssh_host`."""
    return getattr(configuration.make_config(*site_layers()), name)


def parse_argument(name: str, kind: Kind, value: Any) -> Any:
    """Return the value of an argument of a Python call that is no option of a job.

    Raises
    ------
    UsageError
        The value is not of this kind.
    """
    try:
        return kind.place(kind.parse(value), PYTHON)
    except MalformedValueError as error:
        raise UsageError(f"{name}: {error.problem}", error.remedy) from error


def seconds_of(name: str, value: str | float) -> float:
    """Return the value of the argument `name` in seconds.

    Raises
    ------
    UsageError
        The value is no duration.
    """
    return float(parse_argument(name, DURATION, value))
