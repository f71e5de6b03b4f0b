"""The options of a job, merged: those given, the environment, Dask's configuration, the defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpiboot import config as configuration
from mpiboot.batch.sizing import check_min_workers
from mpiboot.config import Config
from mpiboot.errors import UsageError
from mpiboot.protocol import prefix_checks
from mpiboot.protocol.variables import DASK_OPTIONS_PREFIX


def load_config(options: Mapping[str, Any]) -> Config:
    """Options before environment before file before default."""
    command = options.get("command") or ()
    if isinstance(command, str):
        raise UsageError(f"command={command!r}: write it as a list, such as ['python', 'analysis.py']")
    given = {name: value for name, value in options.items() if name != "command" and value is not None}
    configuration.check_names(given, configuration.PYTHON)
    merged = configuration.merge(
        site_layer(), configuration.environment_layer(os.environ), given, command=tuple(map(str, command))
    )
    prefix = Path(merged.env) if merged.env else prefix_checks.active_prefix()
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
        try:
            configuration.check_names([name], configuration.FILE)
            if value is not None:
                configuration.OPTIONS[name].parse(value)
        except UsageError as error:
            raise UsageError(f"{_source_of(key)}: {error}") from error
        layer[name] = value
    return layer


def load_site(name: str) -> Any:
    """One of a site's own settings, such as `ssh_host`."""
    return getattr(configuration.merge(site_layer(), configuration.environment_layer(os.environ)), name)


def _source_of(key: Any) -> str:
    """The file that has `mpiboot: KEY:`, or the variable that sets it."""
    import dask

    variable = f"{DASK_OPTIONS_PREFIX}{str(key).upper().replace('-', '_')}"
    if variable in os.environ:
        return variable
    for path, content in dask.config.collect_yaml(dask.config.paths, return_paths=True):
        section = content.get("mpiboot")
        if section is not None and (not isinstance(section, Mapping) or key in section):
            return str(path)
    return "dask.config"
