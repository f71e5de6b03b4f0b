"""Activates an environment as `conda activate` does: variables of packages and of the environment, then its scripts.

Boot imports this module; it imports `envpack.common`, `protocol.variables` and the errors.
"""

import json
import logging
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from envpack.common.prefix import is_conda
from mpiboot.common.logs import without_tracebacks
from mpiboot.errors import StageError
from mpiboot.protocol import variables as names

logger = logging.getLogger(__name__)

SCRIPTS_TIMEOUT_S = 60
# The value with which `conda env config vars unset` hides a package's variable.
UNSET = "***unset***"


def activated(environ: Mapping[str, str], source: Path, prefix: Path) -> dict[str, str]:
    """Return `environ` with `prefix`, a copy of `source`, as the active environment.

    Parameters
    ----------
    environ : mapping
        The environment. If another conda environment is active in it, that one is deactivated; if it is `source`, the
        variables that the user has changed since stay.
    source, prefix : Path
        The source prefix, and the one that the ranks run from.

    Raises
    ------
    StageError
        The environment's scripts could not be run.
    """
    before = dict(environ)
    if not is_conda(prefix):
        return {
            **{name: value for name, value in before.items() if not _is_condas(name)},
            names.VIRTUAL_ENV: str(prefix),
            names.PYTHON_NO_USER_SITE: "1",
        }
    active = before.get(names.CONDA_PREFIX)
    is_active = active is not None and _is_same(active, source)
    if active and not is_active:
        before = deactivated(before, Path(active))
    after = {name: value for name, value in before.items() if not _is_condas(name)}
    after.pop(names.VIRTUAL_ENV, None)
    for name, value in declared_variables(prefix).items():
        if value is None:
            after.pop(name, None)
        elif not (is_active and name in after):
            after[name] = value
    after |= {
        names.CONDA_PREFIX: str(prefix),
        names.CONDA_DEFAULT_ENV: environment_name(source) or str(prefix),
        names.CONDA_SHLVL: "1",
        names.PYTHON_NO_USER_SITE: "1",
    }
    return run_scripts(sorted((prefix / "etc/conda/activate.d").glob("*.sh")), after, source)


def environment_name(prefix: Path) -> str | None:
    """Return conda's name of an environment; None if conda calls it by its path."""
    if (prefix / "condabin").is_dir():
        return "base"
    return prefix.name if prefix.parent.name == "envs" else None


def _is_condas(name: str) -> bool:
    """Whether conda sets this variable at each activation."""
    mine = (names.CONDA_PREFIX, names.CONDA_DEFAULT_ENV, names.CONDA_SHLVL, *names.CONDA_SHELL)
    return name in mine or name.startswith(names.CONDA_SHELL_PREFIXES)


def _is_same(one: str, other: Path) -> bool:
    try:
        return other.samefile(one)
    except OSError:
        return one == str(other)


def deactivated(environ: Mapping[str, str], prefix: Path) -> dict[str, str]:
    """Return `environ` without what another environment's activation has set: its scripts and its variables.

    A script that fails is passed by: the environment is not the job's.
    """
    scripts = sorted((prefix / "etc/conda/deactivate.d").glob("*.sh"), reverse=True)
    try:
        after = run_scripts(scripts, environ, prefix)
    except StageError as error:
        logger.warning("%s", error.problem)
        after = dict(environ)
    level = environ.get(names.CONDA_SHLVL, "1")
    for name, value in declared_variables(prefix).items():
        if value is not None and after.get(name) == value:
            del after[name]
            saved = f"{names.CONDA_SAVED_PREFIX}{int(level) - 1 if level.isdigit() else 0}_{name}"
            if saved in after:
                after[name] = after[saved]
    return after


def declared_variables(prefix: Path) -> dict[str, str | None]:
    """Return the variables of an environment's packages (`env_vars.d`), then those of `conda env config vars set`.

    Returns
    -------
    dict of str to str or None
        None: the variable is removed. A file that is damaged is named in a warning, and passed by.
    """
    found: dict[str, object] = {}
    for path in sorted((prefix / "etc/conda/env_vars.d").glob("*")):
        found |= read_variables(path, [])
    found |= read_variables(prefix / "conda-meta/state", ["env_vars"])
    return {name: None if value is None else str(value) for name, value in found.items() if value != UNSET}


def read_variables(path: Path, keys: Sequence[str]) -> dict[str, object]:
    """Return the JSON object of a file below `keys`; an empty one, and a warning, if the file has no such object."""
    try:
        content = json.loads(path.read_bytes())
        for key in keys:
            content = content.get(key, {})
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object with names and values")
        if bad := [name for name in content if not name or "=" in name or "\0" in f"{name}{content[name]}"]:
            raise ValueError(f"{bad[0]!r} cannot be a variable")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        logger.warning("the environment's variables in %s are left out: %s", path, reason)
        return {}
    return content


def run_scripts(scripts: Sequence[Path], environ: Mapping[str, str], source: Path) -> dict[str, str]:
    """Return `environ` after bash has sourced the scripts in their order.

    Parameters
    ----------
    scripts : sequence of Path
        Without scripts, nothing changes.
    environ : mapping
        The environment of the scripts.
    source : Path
        The environment, for the remedy.

    Raises
    ------
    StageError
        bash could not be run, or a script has ended it.
    """
    if not scripts:
        return dict(environ)
    # The scripts may test unset variables, which must not end the shell, and print to stdout, which must not get into
    # the output that is parsed.
    code = 'exec 3>&1 >&2; for script in "$@"; do . "$script"; done; env -0 >&3'
    command = ["bash", "-c", code, "activate", *map(str, scripts)]
    folder = scripts[0].parent
    # What bash would source first may print, too, or activate another environment.
    before_bash = {name: value for name, value in environ.items() if name in names.BASH_START}
    try:
        done = subprocess.run(
            command,
            env={name: value for name, value in environ.items() if name not in before_bash},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SCRIPTS_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StageError(
            f"the scripts in {folder} could not be sourced: {error}",
            f"Try it by hand: conda activate {shlex.quote(str(source))}",
        ) from error
    if done.returncode:
        raise StageError(
            f"the scripts in {folder} ended with status {done.returncode}: "
            f"{without_tracebacks(os.fsdecode(done.stderr).strip())[-500:]}",
            f"Find the script that exits: conda activate {shlex.quote(str(source))}",
        )
    pairs = (entry.partition("=") for entry in os.fsdecode(done.stdout).split("\0") if entry)
    return {**before_bash, **{name: value for name, _, value in pairs}}
