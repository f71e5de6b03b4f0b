"""The messages of the channel between boot and agents, and between agents.

Boot and agents import this module. It imports `common.interfaces` and `protocol.messages`.

| from | to | messages |
|---|---|---|
| agent | boot | `Hello`; `NodeReport`, `StageReport` or `Failure` for each order; `Output`; `Ended` |
| boot | agent | `Orders` or `Refused`, in answer to `Hello`; `Peers`; `StageOrder`; `AllStaged`; `Launch`; `Close` |
| both | | `Heartbeat` |
| agent | agent | `Question`, answered by `Sighting`; `ArchiveRequest`, answered by `ArchivePart`s |
"""

from dataclasses import dataclass, field
from typing import Any

from mpiboot.common.interfaces import Interface
from mpiboot.protocol.messages import from_json

ERROR_LENGTH_MAX = 4000


@dataclass(frozen=True)
class Hello:
    """An agent's first message on every connection.

    Attributes
    ----------
    version : str
        The agent's version of mpiboot.
    node : str
        The node's name in the batch system.
    host : str
        The host's own name.
    pid : int
        The agent's process id.
    """

    version: str
    node: str
    host: str
    pid: int


@dataclass(frozen=True)
class Refused:
    """Boot refuses this agent, which must end.

    Attributes
    ----------
    reason : str
        Why boot refuses it.
    """

    reason: str


@dataclass(frozen=True)
class Orders:
    """What an agent must know from its start; the answer is a `NodeReport`.

    Attributes
    ----------
    number : int
        The order's number, which its answer repeats.
    first_node : str
        The node that boot runs on.
    n_nodes : int
        The number of nodes.
    root, job_key : str
        The staging root, and the name of the job's folder below it.
    threads : int
        How many threads stage the environment.
    prefix, pack_id : str or None
        The staged prefix, and the id of the archive's content; None with `--no-stage`.
    cancel_command : list of str or None
        The command that cancels the job; None if the job ends with boot.
    interface : str
        The interface that the user has named, or `auto`; it may be an alias.
    ports : list of int
        The first and the last port on which an agent may listen; empty: any.
    job_variables : dict of str to str
        The variable in which a job's processes have its id, by the name of its batch system.
    """

    number: int
    first_node: str
    n_nodes: int
    root: str
    job_key: str
    threads: int
    prefix: str | None
    pack_id: str | None
    cancel_command: list[str] | None
    interface: str = "auto"
    ports: list[int] = field(default_factory=list)
    job_variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeReport:
    """Describes a node, after its agent has made the job's folder there.

    Attributes
    ----------
    number : int
        Number of the order that this answers.
    interfaces : dict of str to Interface
        The node's network interfaces, by name.
    unusable_interfaces : dict of str to str
        Why its other interfaces cannot be used, by name.
    memory_bytes, cpus : int
        The host's memory, and its number of CPUs.
    root_is_memory : bool
        Whether the staging root's files take up memory, as in a tmpfs.
    has_stage : bool
        Whether the environment was staged here before, since the node's last boot.
    port : int
        The port on which other agents reach this one; 0 in a job of one node.
    allowed_cpus, memory_limit_bytes : int or None
        What the kernel allows the job on this node (`common.confinement`); None: all that the host has.
    """

    number: int
    interfaces: dict[str, Interface]
    memory_bytes: int
    cpus: int
    root_is_memory: bool
    has_stage: bool
    port: int
    unusable_interfaces: dict[str, str] = field(default_factory=dict)
    allowed_cpus: int | None = None
    memory_limit_bytes: int | None = None


@dataclass(frozen=True)
class Peers:
    """The addresses of all agents. No answer.

    Attributes
    ----------
    addresses : dict of str to list
        Host and port of each node's agent, by the node's name.
    """

    addresses: dict[str, list[str | int]]


@dataclass(frozen=True)
class StageOrder:
    """Stage the environment; the answer is a `StageReport`.

    Attributes
    ----------
    number : int
        The order's number, which its answer repeats.
    archive : str
        Path of the archive.
    transport : str
        How the archive comes to the node; recorded with the stage.
    carried : str or None, default None
        Path of each node's own copy of the archive, which the batch system has made; it is removed once it is staged.
    tree : list of str, default none
        The nodes that pass the archive on to each other, in the order of `agent.tree`; all others read the file.
    index_start : int, bytes, default 0
        Offset of the index in the archive; only a tree needs it.
    """

    number: int
    archive: str
    transport: str
    carried: str | None = None
    tree: list[str] = field(default_factory=list)
    index_start: int = 0


@dataclass(frozen=True)
class StageReport:
    """The environment is staged on this node.

    Attributes
    ----------
    number : int
        Number of the order that this answers.
    stage : dict
        envpack's result, and `start` and `end` in seconds since the epoch.
    """

    number: int
    stage: dict[str, str | int | float | bool | list[str]]


@dataclass(frozen=True)
class AllStaged:
    """All nodes have the environment: the agents' copies of the archive are not needed any more. No answer."""


@dataclass(frozen=True)
class Launch:
    """The launcher starts, or is no longer needed: agents keep strangers from holding it up in between. No answer.

    Attributes
    ----------
    seconds : float, seconds
        How long the start of the ranks may take; 0 once all ranks are up.
    """

    seconds: float


@dataclass(frozen=True)
class Failure:
    """An order could not be executed.

    Attributes
    ----------
    number : int
        Number of the order that this answers.
    error : str
        Why the order failed, with the remedy.
    """

    number: int
    error: str


@dataclass(frozen=True)
class Output:
    """Carries output of the node's ranks, as payload."""


@dataclass(frozen=True)
class Heartbeat:
    """Shows that the sender is alive. No answer."""


@dataclass(frozen=True)
class Close:
    """The job ends: the agent must clean its node and end.

    Attributes
    ----------
    reason : str
        Why the job ends.
    """

    reason: str


@dataclass(frozen=True)
class Ended:
    """The agent has cleaned its node, and ends.

    Attributes
    ----------
    reason : str
        Why the agent ends.
    """

    reason: str


@dataclass(frozen=True)
class Question:
    """An agent that has lost boot asks another one whether boot lives."""


@dataclass(frozen=True)
class Sighting:
    """The answer to `Question`: whether boot lives.

    Attributes
    ----------
    boot_lives : bool
        Whether the agent has heard of boot within the last `CONNECTION_SILENCE_S` seconds.
    """

    boot_lives: bool


@dataclass(frozen=True)
class ArchiveRequest:
    """An agent asks another one for its copy of the archive (`envpack.stage.arrival`).

    Attributes
    ----------
    number : int
        Number of the `StageOrder`.
    start : int, bytes
        Offset of the first byte that the asking agent lacks.
    """

    number: int
    start: int


@dataclass(frozen=True)
class ArchivePart:
    """Carries the next bytes of the copy, as payload; an empty payload means that no more bytes have arrived yet."""


KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(Hello, Refused, Orders, NodeReport, Peers, StageOrder, StageReport, Launch, Failure),
        *(AllStaged, Output, Heartbeat, Close, Ended, Question, Sighting, ArchiveRequest, ArchivePart),
    )
}


@dataclass(frozen=True)
class ChannelAddress:
    """Where boot listens: the content of `channel.json` in the job directory.

    Attributes
    ----------
    version : str
        Boot's version of mpiboot.
    addresses : list of str
        IPv4 addresses of boot's host, the preferred one first.
    port : int
        The port, the same on all addresses.
    node_variable : str or None
        The environment variable by which a node knows its name; without it, the host's name counts.
    host_identity : str
        Boot's host and process id namespace (`common.processes.host_identity`).
    pid : int
        Boot's process id in that namespace.
    start : str
        When boot's process started (`common.processes.ProcessStat.start`).
    """

    version: str
    addresses: list[str]
    port: int
    node_variable: str | None
    host_identity: str
    pid: int
    start: str

    @classmethod
    def from_json(cls, data: bytes) -> "ChannelAddress":
        """Parse the file's content; raise MessageError if it is damaged or another version wrote it."""
        return from_json(data, {cls.__name__: cls})


def shorten(message: str) -> str:
    """Cut the middle out of a message that is too long to send; its end stays, because it holds the remedy."""
    half = ERROR_LENGTH_MAX // 2
    return message if len(message) <= ERROR_LENGTH_MAX else f"{message[:half]} … {message[-half:]}"
