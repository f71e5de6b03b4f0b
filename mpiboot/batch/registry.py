"""The list of batch systems that mpiboot knows, and functions that find one by its name.

`NAMES` is the list. A name is that of a folder beside this module and of a job script in `jobscripts/`. A folder is
imported when its batch system is used, so everything may import this module at its start.
"""

from __future__ import annotations

import functools
import importlib
import shutil
from typing import TYPE_CHECKING

from mpiboot.batch.facts import Facts
from mpiboot.errors import BatchError

if TYPE_CHECKING:
    from mpiboot.batch.submission import BatchSystem

# In the order in which `auto` looks for them; `local` is on every machine, so it is the last.
NAMES = (
    "slurm",
    "local",
)


@functools.cache
def facts(name: str) -> Facts:
    """Return the facts about the batch system of that name."""
    result: Facts = importlib.import_module(f"{__package__}.{name}").FACTS
    return result


def all_facts() -> list[Facts]:
    """Return the facts about every batch system that mpiboot knows."""
    return [facts(name) for name in NAMES]


def variable_prefixes() -> tuple[str, ...]:
    """Return the prefixes of the variables that batch systems set in a job."""
    return tuple(prefix for each in all_facts() for prefix in each.variables)


def kept_variables() -> tuple[str, ...]:
    """Return the variables of batch systems that belong to the user or the site."""
    return tuple(name for each in all_facts() for name in each.kept_variables)


def step_variables() -> tuple[str, ...]:
    """Return patterns of the variables that describe one step of a job or one process in it, not the job or the node."""
    return tuple(pattern for each in all_facts() for pattern in each.step_variables)


def job_variables() -> dict[str, str]:
    """Return the variable with the job's id in every process of a job, by the name of its batch system."""
    return {each.name: each.job_variable for each in all_facts() if each.job_variable}


def describes_a_job(variable: str) -> bool:
    """Whether a batch system set this environment variable for one job, so that another job must not inherit it."""
    return any(
        variable.startswith(each.variables) and variable not in each.kept_variables for each in all_facts()
    )


def launchers() -> list[str]:
    """Return the words for `--mpi` that belong to a batch system."""
    return [each.launcher for each in all_facts() if each.launcher]


def transports() -> list[str]:
    """Return the words for `--transport` that belong to a batch system."""
    return [each.transport for each in all_facts() if each.transport]


@functools.cache
def batch_system(name: str) -> BatchSystem:
    """Return the batch system of that name, whether or not this machine has it."""
    system: BatchSystem = importlib.import_module(f"{__package__}.{name}.submission").batch_system()
    return system


def available() -> dict[str, BatchSystem]:
    """Return the batch systems that this machine has, by name; not those whose commands alone are here."""
    return {
        each.name: batch_system(each.name)
        for each in all_facts()
        if each.command is None or (shutil.which(each.command) and not batch_system(each.name).absent)
    }


def why_missing(name: str) -> str:
    """Return why `available` does not have a batch system, in words."""
    command = facts(name).command
    if command is None or not shutil.which(command):
        return f"{command} is not on the PATH of this machine"
    return f"{facts(name).title} is not configured on this machine: {batch_system(name).absent}"


def choose(name: str, *, to_show: bool = False) -> BatchSystem:
    """Return the batch system of that name; `auto` is the first that this machine has.

    Parameters
    ----------
    name : str
        The word for `--batch-system`.
    to_show : bool
        Only to show commands: one that is named may lack its configuration here.

    Raises
    ------
    BatchError
        This machine does not have it.
    """
    systems = available()
    if name == "auto":
        return next(iter(systems.values()))
    if to_show and facts(name).command and shutil.which(str(facts(name).command)):
        return batch_system(name)
    if name not in systems:
        raise BatchError(
            f"--batch-system {name}: {why_missing(name)}",
            f"Type this on a login node, or use --batch-system {next(reversed(systems))}",
        )
    return systems[name]
