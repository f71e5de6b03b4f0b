"""The immutable results that the steps of a boot pass to each other.

Only boot imports this module.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mpiboot.batch.allocation import Allocation, AllocationSystem
from mpiboot.common.interfaces import device_of
from mpiboot.config import Config
from mpiboot.protocol.events import EventLog
from mpiboot.protocol.job_directory import JobDirectory


@dataclass(frozen=True)
class Context:
    """The facts that a boot knows from its start.

    Attributes
    ----------
    config : Config
        The job's options.
    allocation : Allocation
        The job's nodes.
    system : AllocationSystem
        The job's batch system.
    directory : JobDirectory
        The job's directory, on the shared file system.
    events : EventLog
        Writes the job's events.
    source : path
        The source prefix.
    job_folder : path
        The job's folder on each node; its agent makes it.
    """

    config: Config
    allocation: Allocation
    system: AllocationSystem
    directory: JobDirectory
    events: EventLog
    source: Path
    job_folder: Path

    def job_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a command that starts programs on the job's nodes (`AllocationSystem`)."""
        return self.system.job_environment(self.allocation, environ)


@dataclass(frozen=True)
class Network:
    """How the job's processes reach each other.

    Attributes
    ----------
    interface : str
        The interface that all nodes use, or the network if it has another name on some of them.
    node_of_address : dict of str to str
        Each node's name, by its IPv4 address there.
    addresses : dict of str to str
        The first node's addresses on all interfaces that the nodes could use, by the interface's name.
    names : dict of str to str
        The name of the interface on each node.
    """

    interface: str
    node_of_address: dict[str, str]
    addresses: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def devices(self) -> list[str]:
        """The names of the interface's devices on the nodes: `ib0` for the alias `ib0:1`."""
        return sorted({device_of(name) for name in self.names.values()})

    @property
    def for_mpi(self) -> str:
        """The interface as MPI's launchers take it: a device, or a network."""
        return device_of(self.interface)


@dataclass(frozen=True)
class Staged:
    """The environment that the ranks run from.

    Attributes
    ----------
    prefix : path
        The staged prefix, or the source prefix if nothing is staged.
    size_bytes : dict of str to int
        The size of each node's copy; empty if nothing is staged.
    """

    prefix: Path
    size_bytes: dict[str, int]

    @property
    def is_copy(self) -> bool:
        """Whether each node has its own copy."""
        return bool(self.size_bytes)
