"""The script of every rank: it does what the command `dask-mpi` does, wherever the package dask-mpi lies.

Before that, it adds mpiboot's preloads and defaults to the user's Dask configuration, whatever files and variables that
comes from (`protocol.rank_environment.dask_settings`).
"""

import json
import os
import sys
from typing import Any

import dask.config
from dask_mpi.cli import main

from mpiboot.common.faults import one_line
from mpiboot.protocol.variables import DASK_SETTINGS_VARIABLE


def add_settings(settings: "dict[str, dict[str, Any]]") -> None:
    """Change Dask's configuration.

    Parameters
    ----------
    settings : dict
        `preload`: modules, by role (scheduler, nanny, worker), which come before the user's. `defaults`: values of
        settings that the user has left alone.
    """
    nested: dict[str, Any] = {}
    dask.config.set(settings.get("defaults", {}), config=nested)
    dask.config.update_defaults(nested)
    for role, ours in settings.get("preload", {}).items():
        key = f"distributed.{role}.preload"
        theirs = dask.config.get(key, default=None) or []
        theirs = [theirs] if isinstance(theirs, str) else list(theirs)
        # One list of arguments for all, or one list for each (distributed.preloading.process_preloads).
        arguments = dask.config.get(f"{key}-argv", default=None) or []
        if not arguments or isinstance(arguments[0], str):
            arguments = [arguments] * len(theirs)
        dask.config.set({key: [*ours, *theirs], f"{key}-argv": [*([[]] * len(ours)), *arguments]})


if __name__ == "__main__":
    try:
        add_settings(json.loads(os.environ.get(DASK_SETTINGS_VARIABLE, "{}")))
        main()
    except Exception as error:
        sys.exit(f"mpiboot: a rank on {os.uname().nodename} has failed: {one_line(error)}")
