"""Merges a job's options: arguments, environment, Dask's configuration files, defaults; the first has precedence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from envpack.common.units import parse_duration_s
from envpack.errors import MalformedValueError
from mpiboot import config as configuration
from mpiboot.batch.sizing import check_min_workers
from mpiboot.config import Config
from mpiboot.errors import UsageError
from mpiboot.option import FILE, PYTHON
from mpiboot.protocol import prefix_checks
from mpiboot.protocol.variables import DASK_OPTIONS_PREFIX


def load_config(options: Mapping[str, Any]) -> Config:
    """Return a job's options: the given ones, and the others from the environment, the configuration files and defaults.

    Raises
    ------
    UsageError
        An option is unknown, has a value of the wrong type, or does not fit the others.
    EnvironmentUnfitError
        No environment is given, and none is active.
    """
    command = options.get("command") or ()
    if isinstance(command, str):
        raise UsageError(f"command={command!r} is not a list", "Write one, such as ['python', 'analysis.py']")
    given = {name: value for name, value in options.items() if name != "command"}
    configuration.check_names(given, PYTHON)
    merged = configuration.merge(
        site_layer(), configuration.environment_layer(os.environ), given, command=tuple(map(str, command))
    )
    prefix = Path(merged.env) if merged.env else prefix_checks.active_prefix()
    if merged.workers_per_node:
        check_min_workers(merged.min_workers, merged.nodes * merged.workers_per_node)
    return replace(merged, env=str(prefix.expanduser().absolute()))


def site_layer() -> dict[str, Any]:
    """Return the options in Dask's configuration, below the key `mpiboot`.

    Raises
    ------
    UsageError
        A key is unknown or has a value of the wrong type; the message names the file and lists the valid keys.
    """
    try:
        import dask
    except ValueError as error:  # dask reads all of its configuration files when it is imported
        raise UsageError(" ".join(str(error).split()), "Correct that file") from error

    section = dask.config.get("mpiboot", {}) or {}
    if not isinstance(section, Mapping):
        raise UsageError(
            f"{_source_of(None)}: what `mpiboot:` holds is not a mapping of keys to values",
            "Write one option a line below it, such as `nodes: 2`",
        )
    layer = {}
    for key, value in section.items():
        name = str(key).replace("-", "_")
        try:
            configuration.check_names([name], FILE)
            if value is not None:
                configuration.OPTIONS[name].parse(value)
        except UsageError as error:
            raise UsageError(f"{_source_of(key)}: {error.problem}", error.remedy) from error
        layer[name] = value
    return layer


def load_site(name: str) -> Any:
    """Return one option of the site, such as `ssh_host`."""
    return getattr(configuration.merge(site_layer(), configuration.environment_layer(os.environ)), name)


def _source_of(key: Any) -> str:
    """Return the configuration file that has the key, or the environment variable that sets it."""
    import dask

    variable = f"{DASK_OPTIONS_PREFIX}{str(key).upper().replace('-', '_')}"
    if variable in os.environ:
        return variable
    for path, content in dask.config.collect_yaml(dask.config.paths, return_paths=True):
        section = content.get("mpiboot")
        if section is not None and (not isinstance(section, Mapping) or key in section):
            return str(path)
    return "dask.config"


def seconds_of(name: str, value: str | float) -> float:
    """Return the value of the argument `name` in seconds.

    Raises
    ------
    UsageError
        The value is no duration.
    """
    try:
        return parse_duration_s(value)
    except MalformedValueError as error:
        raise UsageError(f"{name}: {error.problem}", error.remedy) from error
