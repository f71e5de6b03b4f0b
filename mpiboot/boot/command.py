"""Batch mode: runs the user's command in the staged environment, where `Client()` connects to the cluster.

Only boot imports this module.
"""

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpiboot.batch.allocation import batch_variables
from mpiboot.boot.context import Context
from mpiboot.common.patterns import matches
from mpiboot.errors import UsageError
from mpiboot.protocol.rank_environment import task_environment
from mpiboot.protocol.variables import (
    DASK_SCHEDULER_ADDRESS,
    DEVICES,
    NODE_FILES,
    SCHEDULER_FILE_VARIABLE,
)


def start_command(
    context: Context, variables: Mapping[str, str], scheduler: Mapping[str, Any]
) -> "subprocess.Popen[bytes] | None":
    """Start the command of batch mode; None if there is none.

    Parameters
    ----------
    context : Context
        Options, allocation and directories of this boot.
    variables : mapping of str to str
        The ranks' environment.
    scheduler : mapping
        The scheduler's `address`.

    Raises
    ------
    UsageError
        The command cannot be started.
    """
    command = context.config.command
    if not command:
        return None
    own = {name: value for name, value in os.environ.items() if matches(name, (*DEVICES, *NODE_FILES))}
    environ = {
        **task_environment(variables, {**batch_variables(os.environ), **own}),
        DASK_SCHEDULER_ADDRESS: scheduler["address"],
        SCHEDULER_FILE_VARIABLE: str(context.directory.scheduler_file),
    }
    try:
        return subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in an argument
        cause = error.strerror if isinstance(error, OSError) else error
        is_file = isinstance(error, PermissionError) and Path(command[0]).is_file()
        failure = UsageError(
            f"{command[0]} could not be started: {cause}",
            f"Make it executable: chmod +x {shlex.quote(command[0])}"
            if is_file
            else "Write the full path of an executable file after --",
        )
        # As of a shell: exit status 127 if there is no such command, 126 if it cannot be executed.
        failure.exit_status = 127 if isinstance(error, FileNotFoundError) else 126
        raise failure from error
