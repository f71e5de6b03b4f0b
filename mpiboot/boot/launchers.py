"""The launcher command of each MPI: pure functions that return `list[str]`. Only boot imports this module.

| MPI | how ranks survive the loss of another | more ranks than slots | tested with |
|---|---|---|---|
| Open MPI 5 | `--runtime-options recoverable,continuous` (prterun(1)) | `:OVERSUBSCRIBE` | 5.0.11 |
| Open MPI 4 | `--enable-recovery --continuous` (mpirun(1) of 4.1) | `:OVERSUBSCRIBE` | no |
| MPICH | `-disable-auto-cleanup` (mpiexec.hydra -help) | hydra never refuses | 5.0.2 |
| Intel MPI | `I_MPI_FAULT_CONTINUE=on` (Reference Manual, Fault Tolerance) | hydra never refuses | no |

A lost node ends mpirun nevertheless; agent/adopt.py explains why the ranks survive that. Every MPI also gets
`MPI4PY_RC_FINALIZE=0`: a surviving rank must not wait in MPI_Finalize for a dead one. The launcher of a batch system is
in batch/<system>/allocation.py.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mpiboot.batch.allocation import Placement
from mpiboot.protocol.variables import INTEL_FAULT_CONTINUE, INTEL_PIN


def placement(workers: Mapping[str, int]) -> Placement:
    """Place one rank per worker, and rank 0, the scheduler, on the first node.

    Parameters
    ----------
    workers : mapping of str to int
        The number of workers on each node, the first node first.
    """
    first, *others = workers.values()
    return Placement(tuple(workers), (first + 1, *others))


# Builds a launcher's command from the path of mpirun, the placement, the path of the host file, the network interface to
# use (None: any), and what each rank runs.
Builder = Callable[[str, "Placement", Path, "str | None", Sequence[str]], list[str]]


def builder(mpi: str, version: str) -> Builder:
    """Return the function that builds the command of `mpi`, whose `mpirun --version` prints `version`."""
    if mpi == "openmpi":
        number = re.search(r"\(Open(?: MPI|RTE)\) (\d+)", version)
        return openmpi4 if number and int(number[1]) < 5 else openmpi
    return intelmpi if mpi == "intelmpi" else hydra


def openmpi4(
    mpirun: str, place: Placement, host_file: Path, interface: str | None, rank: Sequence[str]
) -> list[str]:
    """The command of Open MPI 4."""
    interface_options = (
        ["--mca", "btl_tcp_if_include", interface, "--mca", "oob_tcp_if_include", interface]
        if interface
        else []
    )
    return [
        mpirun,
        *("-n", str(place.world_size), "--hostfile", str(host_file)),
        *("--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"),
        *("--enable-recovery", "--continuous"),
        *interface_options,
        *rank,
    ]


def openmpi(
    mpirun: str, place: Placement, host_file: Path, interface: str | None, rank: Sequence[str]
) -> list[str]:
    """The command of Open MPI 5. Binding is off: it would pin a threaded worker to one core."""
    interface_options = (
        ["--mca", "btl_tcp_if_include", interface, "--prtemca", "prte_if_include", interface]
        if interface
        else []
    )
    return [
        mpirun,
        *("-n", str(place.world_size), "--hostfile", str(host_file)),
        *("--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"),
        *("--runtime-options", "recoverable,continuous"),
        *interface_options,
        *rank,
    ]


def hydra(
    mpirun: str, place: Placement, host_file: Path, interface: str | None, rank: Sequence[str]
) -> list[str]:
    """The command of MPICH. The environment travels in a file, so no `-genv` is needed."""
    interface_options = _iface(interface)
    return [
        *(mpirun, "-n", str(place.world_size), "-f", str(host_file)),
        *("-disable-auto-cleanup", "-bind-to", "none"),
        *interface_options,
        *rank,
    ]


def intelmpi(
    mpirun: str, place: Placement, host_file: Path, interface: str | None, rank: Sequence[str]
) -> list[str]:
    """The command of Intel MPI. Its hydra reads ranks per host only from a machine file, and pins ranks by default."""
    return [
        *(mpirun, "-n", str(place.world_size), "-machinefile", str(host_file)),
        *("-genv", INTEL_FAULT_CONTINUE, "on", "-genv", INTEL_PIN, "off"),
        *_iface(interface),
        *rank,
    ]


def _iface(interface: str | None) -> list[str]:
    """Hydra takes the name of an interface, where Open MPI also takes a network."""
    return ["-iface", interface] if interface and "/" not in interface else []


def host_file(mpi: str, place: Placement) -> str:
    """The text of the host file that `mpi` reads."""
    form = "{} slots={}\n" if mpi == "openmpi" else "{}:{}\n"
    return "".join(form.format(*pair) for pair in zip(place.nodes, place.ranks_per_node, strict=True))
