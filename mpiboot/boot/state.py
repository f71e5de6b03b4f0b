"""What the steps of one boot share. Standard library only."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpiboot.batch.allocation import Allocation
from mpiboot.boot.agents import Agents
from mpiboot.boot.control import Control
from mpiboot.config import Config
from mpiboot.protocol.events import EventLog
from mpiboot.protocol.job_directory import JobDirectory


@dataclass(frozen=True)
class Worker:
    """Where a worker is; its rank is that of its nanny, so the worker that replaces it has the same."""

    host: str
    rank: int | None


@dataclass
class Cluster:
    """What the scheduler's preload has told so far."""

    scheduler: dict[str, Any] | None = None
    workers: dict[str, Worker] = field(default_factory=dict)  # by address
    close_reason: str | None = None
    gone: bool = False
    # Where no worker is left: since when, or None once that was said.
    lost_nodes: dict[str, float | None] = field(default_factory=dict)
    newest_client: float = 0.0
    launcher_ended: bool = False


@dataclass
class Job:
    """All that the steps of a boot share."""

    config: Config
    allocation: Allocation
    directory: JobDirectory
    events: EventLog
    prefix: Path  # the source prefix, on the shared file system
    local_folder: Path  # on each node, 0700, gone with the job
    staged: Path | None = None  # the staged prefix
    cluster: Cluster = field(default_factory=Cluster)
    orders: dict[str, Any] = field(default_factory=dict)  # what the agents were told
    node_of_ip: dict[str, str] = field(default_factory=dict)
    agents: Agents | None = None
    control: Control | None = None
    command: subprocess.Popen[bytes] | None = None  # batch mode
    ranks: subprocess.Popen[bytes] | None = None
