"""Runs a batch system's commands, with a time limit, and turns failures into errors.

`CommandBatchSystem` (system.py) uses it on the client's side, and a system's `allocation.py` inside the job. Boot
imports it at its start, so it imports few modules.
"""

import os
import shlex
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence

from mpiboot.common.logs import without_tracebacks
from mpiboot.errors import BatchAwayError, BatchError

TIMEOUT_S = 30.0
TIMED_OUT = "timed out"


def run(
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    is_away: Callable[[str], bool] = lambda text: text.startswith(TIMED_OUT),
    remedy: str = "",
) -> str:
    """Run a batch system's command and return its standard output.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments. It gets no standard input.
    environ : mapping, optional
        The command's whole environment; None: this process's own.
    timeout_s : float, seconds
    is_away : callable
        Whether an error text means that the batch system temporarily does not answer, such as during a restart. For a
        command that did not end in time, the text starts with "timed out".
    remedy : str, optional
        The remedy when the command fails or does not end in time. Default: to type the command.

    Raises
    ------
    BatchAwayError
        The batch system temporarily does not answer; a later attempt may succeed.
    BatchError
        The command is not installed here, or it failed; the message holds what it wrote to standard error.
    """
    name = command[0]
    remedy = remedy or f"Type it by hand: {shlex.join(command)}"
    try:
        done = subprocess.run(
            command,
            env=None if environ is None else dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
        )
    except OSError as error:
        raise BatchError(
            f"{name} cannot be run on {socket.gethostname()}: {error.strerror}",
            "Type this where the batch system's commands are, such as a login node",
        ) from error
    except subprocess.TimeoutExpired as error:
        text = os.fsdecode(error.stderr or b"").strip().partition("\n")[0]
        kind = BatchAwayError if is_away(f"{TIMED_OUT}: {text}") else BatchError
        shown = f" ({text})" if text else ""
        raise kind(
            f"{name} did not answer within {timeout_s:.0f} s on {socket.gethostname()}{shown}", remedy
        ) from error
    if done.returncode:
        # A site's wrapper around the command may be a Python program.
        text = without_tracebacks(done.stderr.strip()) or f"exit status {done.returncode}"
        kind = BatchAwayError if is_away(text) else BatchError
        raise kind(text if text.startswith(name) else f"{name}: {text}", remedy)
    return done.stdout
