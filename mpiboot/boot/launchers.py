"""The command that starts the ranks, for each MPI. Pure functions that return `list[str]`.

| MPI | one lost rank must not take the others | more ranks than slots | tried |
|---|---|---|---|
| Open MPI 5 | `--runtime-options recoverable,continuous` (prterun(1)) | `:OVERSUBSCRIBE` | 5.0.11 |
| Open MPI 4 | `--enable-recovery --continuous` (mpirun(1) of 4.1) | `:OVERSUBSCRIBE` | no |
| MPICH | `-disable-auto-cleanup` (mpiexec.hydra -help) | hydra never refuses | 5.0.2 |
| Intel MPI | `I_MPI_FAULT_CONTINUE=on` (Reference Manual, Fault Tolerance) | hydra never refuses | no |

A lost node ends mpirun all the same; agent/adopt.py says why the ranks survive that. `MPI4PY_RC_FINALIZE=0` goes with
each of them: a rank that survives must not wait in MPI_Finalize for a dead one. A batch system's own launcher stands in
batch/<system>/allocation.py.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mpiboot.batch.allocation import Placement
from mpiboot.protocol.variables import INTEL_FAULT_CONTINUE, INTEL_PIN


def placement(workers: Mapping[str, int]) -> Placement:
    """One rank per worker, and rank 0, the scheduler, on the first node.

    Parameters
    ----------
    workers
        Number of workers on each node, the first node first.
    """
    first, *others = workers.values()
    return Placement(tuple(workers), (first + 1, *others))


Builder = Callable[[str, "Placement", Path, "str | None", Sequence[str]], list[str]]


def builder(mpi: str, version: str) -> Builder:
    """What builds the command of `mpi`, whose `mpirun --version` says `version`."""
    if mpi == "openmpi":
        found = re.search(r"(\d+)\.\d+", version)
        return openmpi4 if found and int(found[1]) < 5 else openmpi
    return intelmpi if mpi == "intelmpi" else hydra


def openmpi4(
    mpirun: str, place: Placement, host_file: Path, interface: str | None, rank: Sequence[str]
) -> list[str]:
    """Open MPI 4."""
    kept_to = (
        ["--mca", "btl_tcp_if_include", interface, "--mca", "oob_tcp_if_include", interface]
        if interface
        else []
    )
    return [
        mpirun,
        *("-n", str(place.world_size), "--hostfile", str(host_file)),
        *("--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"),
        *("--enable-recovery", "--continuous"),
        *kept_to,
        *rank,
    ]


def openmpi(
    mpirun: str, place: Placement, host_file: Path, interface: str | None, rank: Sequence[str]
) -> list[str]:
    """Open MPI 5. Binding is off: a threaded worker would be pinned to one core."""
    kept_to = (
        ["--mca", "btl_tcp_if_include", interface, "--prtemca", "prte_if_include", interface]
        if interface
        else []
    )
    return [
        mpirun,
        *("-n", str(place.world_size), "--hostfile", str(host_file)),
        *("--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"),
        *("--runtime-options", "recoverable,continuous"),
        *kept_to,
        *rank,
    ]


def hydra(
    mpirun: str, place: Placement, host_file: Path, interface: str | None, rank: Sequence[str]
) -> list[str]:
    """MPICH. The environment travels in a file, so no `-genv` is needed."""
    kept_to = ["-iface", interface] if interface else []
    return [
        *(mpirun, "-n", str(place.world_size), "-f", str(host_file)),
        *("-disable-auto-cleanup", "-bind-to", "none"),
        *kept_to,
        *rank,
    ]


def intelmpi(
    mpirun: str, place: Placement, host_file: Path, interface: str | None, rank: Sequence[str]
) -> list[str]:
    """Intel MPI: its hydra reads counts per host from a machine file alone, and pins unless told."""
    return [
        *(mpirun, "-n", str(place.world_size), "-machinefile", str(host_file)),
        *("-genv", INTEL_FAULT_CONTINUE, "on", "-genv", INTEL_PIN, "off"),
        *(["-iface", interface] if interface else []),
        *rank,
    ]


def host_file(mpi: str, place: Placement) -> str:
    """The text of the host file that `mpi` reads."""
    form = "{} slots={}\n" if mpi == "openmpi" else "{}:{}\n"
    return "".join(form.format(*pair) for pair in zip(place.nodes, place.ranks_per_node, strict=True))
