"""The allocation of a job, and the interface of a batch system inside the job.

Each `batch/<system>/allocation.py` has an `AllocationSystem` as `SYSTEM`; boot finds it here, by the job's environment.
Never read MPI's ranks from a batch system: only MPI knows them.
"""

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mpiboot.batch import registry
from mpiboot.batch.runner import run
from mpiboot.common.units import parse_walltime_s
from mpiboot.errors import AllocationError

# A function that runs a command and returns its output: `mpiboot.batch.runner.run`, or a replacement in tests.
Run = Callable[..., str]


@dataclass(frozen=True)
class Node:
    """One node's part of an allocation.

    Attributes
    ----------
    name : str
        The node's name in the batch system.
    cpus : int
        CPUs that the job may use on this node.
    memory_bytes : int or None
        Memory of the job on this node; None if the batch system sets no limit.
    tasks : int or None
        Tasks on this node; None unless the user asked for tasks.
    given_cpus : int or None
        CPUs of the job on this node, if the user asked to leave some of them unused, such as the second thread of each
        core; None: `cpus`.
    threads_per_core : int
        How many CPUs, as threads, a core has.
    devices : str
        Devices of the job on this node, in words, such as `2 gpu`.
    total_cpus, total_memory_bytes : int or None
        The whole node's CPUs and memory; None if the batch system does not tell.
    """

    name: str
    cpus: int
    memory_bytes: int | None = None
    tasks: int | None = None
    given_cpus: int | None = None
    threads_per_core: int = 1
    devices: str = ""
    total_cpus: int | None = None
    total_memory_bytes: int | None = None


@dataclass(frozen=True)
class Allocation:
    """The nodes, CPUs and memory that a batch system gave a job.

    Attributes
    ----------
    batch_system : str
        The name of the batch system, as in `--batch-system`.
    job_id, job_key : str
        The batch system's id of the job, and the name of the job's directory.
    nodes : tuple of Node
        At least one; the boot runs on the first.
    cpus_per_task : int or None
        CPUs of each task; None unless the user asked for a number.
    end_time : float or None
        When the batch system ends the job, in seconds since the epoch; None if it reports no end.
    restart_count : int
        How often the job was requeued.
    """

    batch_system: str
    job_id: str
    job_key: str
    nodes: tuple[Node, ...]
    cpus_per_task: int | None = None
    end_time: float | None = None
    restart_count: int = 0

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes)

    @property
    def least_cpus(self) -> int:
        """The number of CPUs of the node that has the fewest."""
        return min(node.cpus for node in self.nodes)


@dataclass(frozen=True)
class Placement:
    """The nodes on which MPI's ranks run; ranks are numbered from the first node on.

    Attributes
    ----------
    nodes : tuple of str
        Names of the nodes.
    ranks_per_node : tuple of int
        The number of ranks on each.
    """

    nodes: tuple[str, ...]
    ranks_per_node: tuple[int, ...]

    @property
    def world_size(self) -> int:
        """Ranks of all nodes together."""
        return sum(self.ranks_per_node)


@dataclass(frozen=True)
class Launch:
    """A launcher's command, with its host file and variables.

    Attributes
    ----------
    command : list of str
        The launcher and its arguments.
    host_file : str
        The text of the host file that the launcher reads.
    variables : dict of str to str
        Environment variables that the launcher needs besides the ranks' own.
    """

    command: list[str]
    host_file: str
    variables: dict[str, str] = field(default_factory=dict)


class AllocationSystem:
    """A batch system, as boot uses it inside a job.

    The methods build commands and parse their output. Methods that must query the batch system get `run`. The defaults
    fit a batch system with one node and without commands.

    Attributes
    ----------
    several_hosts : bool
        Whether a job's nodes may be several hosts, which reach each other over a network.
    node_variable : str or None
        The variable with the node's name, in a program started on a node; None: the node's name is the host's name.
    stop_start : bool
        Whether boot stops (SIGSTOP) the command of `on_every_node` once the agents have dialled: nobody needs it any
        more, and it might end them.
    """

    several_hosts = False
    stop_start = False
    node_variable: str | None = None

    def read(self, environ: Mapping[str, str], run: Run) -> Allocation:
        """The allocation of the job that this process runs in.

        Raises
        ------
        AllocationError
            The job's variables make no sense.
        BatchError
            The batch system does not answer.
        """
        raise NotImplementedError

    def job_environment(self, allocation: Allocation, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of commands that start programs on the job's nodes, mpirun included.

        Parameters
        ----------
        allocation : Allocation
            The job's nodes.
        environ : mapping
            Variables, among which may be some that change how the batch system's commands start programs.
        """
        return dict(environ)

    def end_time(self, allocation: Allocation, run: Run) -> float | None:
        """Ask the batch system when it ends the job, in seconds since the epoch; None if there is no end.

        Raises
        ------
        BatchError
            The batch system does not answer.
        """
        return allocation.end_time

    def on_every_node(self, allocation: Allocation, command: Sequence[str]) -> list[str]:
        """Return the command that starts `command` once per node. Its output goes to the log, and nothing parses it."""
        return list(command)

    def cancel_command(self, job_id: str) -> list[str] | None:
        """Return the command that cancels the job; None if the job ends with its boot."""
        return None

    def carry_command(self, source: Path, target: Path) -> list[str]:
        """Return the command that copies a file to every node: the `transport` in the batch system's facts."""
        raise NotImplementedError

    def launch(
        self, place: Placement, host_file: Path, rank: Sequence[str], mpi: str | None, run: Run
    ) -> Launch:
        """Return how the batch system's own launcher, the `launcher` in its facts, starts ranks.

        Parameters
        ----------
        place : Placement
            How many ranks run on each node.
        host_file : path
            Where the text of the host file will be.
        rank : sequence of str
            The command that each rank runs.
        mpi : str or None
            The MPI library that the ranks load, as `--mpi` names it; None: unknown.
        run : callable
            Runs a command.
        """
        raise NotImplementedError


def system(name: str) -> AllocationSystem:
    """Return the batch system of that name."""
    found: AllocationSystem = importlib.import_module(f"{__package__}.{name}.allocation").SYSTEM
    return found


def read_allocation(
    environ: Mapping[str, str], batch_system: str = "auto", walltime: str | None = None, run: Run = run
) -> Allocation:
    """The allocation of the job that this process runs in.

    Parameters
    ----------
    environ : mapping
        The job's environment.
    batch_system : str, default "auto"
        The batch system's name; `auto`: the one whose variables are set.
    walltime : str, optional
        The job's walltime, counted from now: used if the batch system reports no end.

    Raises
    ------
    AllocationError
        There is no job, or its variables make no sense.
    BatchError
        The batch system does not answer.
    """
    allocation = system(_name_of_jobs_system(environ, batch_system)).read(environ, run)
    no_end = float("inf")
    walltime_s = parse_walltime_s(walltime) if walltime else no_end
    if allocation.end_time is None and walltime_s < no_end:
        return replace(allocation, end_time=time.time() + walltime_s)
    return allocation


def _name_of_jobs_system(environ: Mapping[str, str], batch_system: str) -> str:
    if batch_system != "auto" and registry.facts(batch_system).job_variable is None:
        return batch_system
    candidates = [
        facts for facts in registry.all_facts() if facts.job_variable and batch_system in ("auto", facts.name)
    ]
    for facts in candidates:
        if facts.job_variable in environ:
            return facts.name
    variables = ", ".join(str(facts.job_variable) for facts in candidates)
    name, command = candidates[0].name, candidates[0].command
    raise AllocationError(
        f"this is no batch job: {variables} is not set",
        f"Submit one: mpiboot submit; or by hand: mpiboot jobscript {name} > {name}.sh && {command} {name}.sh",
    )


def batch_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `environ` that belong to a job of any batch system."""
    prefixes = registry.variable_prefixes()
    return {name: value for name, value in environ.items() if name.startswith(prefixes)}
