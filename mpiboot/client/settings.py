"""The options of a job, merged: those given, the environment, Dask's configuration, the defaults."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpiboot import config as configuration
from mpiboot.batch.allocation import check_min_workers
from mpiboot.config import Config
from mpiboot.errors import (
    UsageError,
)
from mpiboot.protocol import rank_environment as environment


def load_config(options: Mapping[str, Any]) -> Config:
    """Options before environment before file before default."""
    command = options.get("command") or ()
    if isinstance(command, str):
        raise UsageError(f"command={command!r}: write it as a list, such as ['python', 'analysis.py']")
    for name, instead in (("home", "set MPIBOOT_HOME"), ("archive", "it is found, or made, from env")):
        if options.get(name) is not None:
            raise UsageError(f"{name}={options[name]!r} is boot's own option: {instead}")
    given = {name: value for name, value in options.items() if name != "command"}
    merged = configuration.merge(
        site_layer(), configuration.environment_layer(os.environ), given, command=tuple(map(str, command))
    )
    prefix = (
        Path(merged.env) if merged.env else environment.active_prefix(os.environ, sys.prefix, sys.base_prefix)
    )
    if merged.workers_per_node:
        check_min_workers(merged.min_workers, merged.nodes * merged.workers_per_node)
    return replace(merged, env=str(prefix.expanduser().absolute()))


def site_layer() -> dict[str, Any]:
    """What Dask's configuration says under `mpiboot`.

    Raises
    ------
    UsageError
        An unknown key or a bad value; names the file and lists the valid keys.
    """
    try:
        import dask
    except ValueError as error:  # it reads all of its files at once
        raise UsageError(" ".join(str(error).split())) from error

    section = dask.config.get("mpiboot", {}) or {}
    if not isinstance(section, Mapping):
        raise UsageError(f"{_source_of(None)}: what `mpiboot:` holds is not a mapping of keys to values")
    layer = {}
    for key, value in section.items():
        name = str(key).replace("-", "_")
        valid = [option for option in configuration.OPTIONS if option not in configuration.NOT_IN_FILES]
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            why = "belongs on the command line alone" if name in configuration.OPTIONS else "is unknown"
            raise UsageError(
                f"{_source_of(key)}: the key {key!r} {why}{hint}; valid keys: {', '.join(valid)}"
            )
        try:
            layer[name] = None if value is None else configuration.parse_value(name, value)
        except UsageError as error:
            raise UsageError(f"{_source_of(key)}: {error}") from error
    return layer


def load_site(name: str) -> Any:
    """One of a site's own settings, such as `ssh_host`."""
    return {**site_layer(), **configuration.environment_layer(os.environ)}.get(name)


def _source_of(key: Any) -> str:
    """The file that has `mpiboot: KEY:`, or the variable that sets it."""
    import dask

    variable = f"DASK_MPIBOOT__{str(key).upper().replace('-', '_')}"
    if variable in os.environ:
        return variable
    for path, content in dask.config.collect_yaml(dask.config.paths, return_paths=True):
        section = content.get("mpiboot")
        if section is not None and (not isinstance(section, Mapping) or key in section):
            return str(path)
    return "dask.config"
