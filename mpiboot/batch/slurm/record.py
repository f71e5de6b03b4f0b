"""Parses what `scontrol show job --details --oneliner` and `scontrol show node --oneliner` print.

`allocation` imports this module. Pure functions; the formats are those of Slurm 20.11 to 24.11
(src/api/job_info.c and node_info.c).
"""

import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from mpiboot.batch.slurm.text import find_word
from mpiboot.errors import AllocationError

MIB = 1024**2
UNITS = {"": MIB, "K": 1024, "M": MIB, "G": 1024**3, "T": 1024**4, "P": 1024**5}


class Share(NamedTuple):
    """What a job has on one node.

    Attributes
    ----------
    threads : int
        Hardware threads of the job's cores.
    memory_bytes : int
        Memory; 0: no limit.
    devices : str
        Its generic resources in words, such as `2 gpu`.
    """

    threads: int
    memory_bytes: int
    devices: str


class NodeFacts(NamedTuple):
    """A node as slurm.conf describes it.

    Attributes
    ----------
    host_name : str
        The host's name, which may differ from the node's.
    threads, threads_per_core, sockets : int
        Hardware threads of the node, and of each core (a site may let Slurm count cores as CPUs); the node's sockets.
    memory_bytes : int
        The node's memory.
    """

    host_name: str
    threads: int
    threads_per_core: int
    sockets: int
    memory_bytes: int


def number(text: str, key: str, default: int) -> int:
    """Return the number `key=N`; the default if there is none, or another word, such as `N/A`."""
    word = find_word(text, key) or ""
    return int(word) if word.isdigit() else default


def job_record(output: str) -> str:
    """Return the part of a job's record whose words no user chose: without the job's name and what follows its command.

    A name may hold anything, `NodeList=…` too.
    """
    named = re.sub(r"JobName=.*? UserId=(?=\S+\(\d+\) GroupId=)", "UserId=", output, count=1, flags=re.DOTALL)
    return named.partition(" Command=")[0]


def shares(record: str) -> dict[str, Share]:
    """Return what the job has on each node, in the order of the record; empty if the record does not tell."""
    groups = re.findall(r"\bNodes=(\S+) CPU_IDs=(\S*) Mem=(\d+)(?: GRES=(\S*))?", record)
    return {
        name: Share(count_ids(cpu_ids), int(mib) * MIB, devices(gres))
        for nodes, cpu_ids, mib, gres in groups
        for name in expand_nodes(nodes)
    }


def count_ids(text: str) -> int:
    """Return how many ids `0-3,7` names: 5."""
    return sum(int(last or first) - int(first) + 1 for first, last in re.findall(r"(\d+)(?:-(\d+))?", text))


def devices(gres: str) -> str:
    """Return generic resources in words: `gpu:a100:2(IDX:0-1),shard:4` is `2 gpu:a100, 4 shard`."""
    words = []
    for part in re.sub(r"\([^)]*\)", "", gres.replace("(null)", "")).split(","):
        name, _, count = part.rpartition(":")
        words.append(f"{count} {name}" if name else part)
    return ", ".join(filter(None, words))


def memory_bytes(word: str | None) -> int:
    """Return the bytes of a size as scontrol prints it: `400M`, `1.5G`, or a number of MiB; 0 for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)", word or "")
    return int(float(match[1]) * UNITS[match[2]]) if match else 0


def threads_per_core_asked(record: str) -> int | None:
    """Return the job's `--threads-per-core`, which `--hint=nomultithread` sets to 1; None if it asked for none."""
    word = (find_word(record, "ReqB:S:C:T") or "").rpartition(":")[2]
    return int(word) if word.isdigit() else None


def usable_threads(threads: int, threads_per_core: int, asked: int | None) -> int:
    """Return how many of the hardware threads of its cores a job uses that asked for `asked` per core."""
    return threads if asked is None else threads * min(asked, threads_per_core) // threads_per_core


def tasks_per_node(record: str, counts: Sequence[int] | None, cpus: Sequence[int]) -> list[int] | None:
    """Return the tasks of each node; None unless the user asked for tasks.

    Slurm gives every job a number of tasks, and variables with it. The job's record shows what was asked for:
    `--ntasks-per-node` as such, and any other option as a number of tasks that differs from that of the nodes. One task
    per node was asked for if Slurm placed them so where it would have placed one task per CPU (but for
    `--hint=nomultithread`, with which it never does).

    Parameters
    ----------
    record : str
        The job's record.
    counts : sequence of int or None
        Tasks per node as in the job's variables, which another job's may have replaced; None if there are none.
    cpus : sequence of int
        CPUs of each node.
    """
    total, n_nodes = number(record, "NumTasks", 0), len(cpus)
    per_node = (find_word(record, "NtasksPerN:B:S:C") or "").partition(":")[0] not in ("", "0", "*")
    fits = counts is not None and len(counts) == n_nodes and sum(counts) == total
    if per_node or total > n_nodes:
        return list(counts or ()) if fits else spread(total, cpus)
    has_room = any(n >= 2 * number(record, "CPUs/Task", 1) for n in cpus)
    return [1] * n_nodes if fits and has_room and threads_per_core_asked(record) is None else None


def most_tasks(record: str, share: Share, facts: NodeFacts | None) -> int | None:
    """Return the tasks of a node in a job that asked for no number, but for tasks of each core or socket; else None.

    `--hint=nomultithread` sets one task per core, too, in some versions: it is no request then.
    """
    per_socket, per_core = (find_word(record, "NtasksPerN:B:S:C") or "::*:*").split(":")[2:4]
    if facts is None or threads_per_core_asked(record) is not None:
        return None
    wishes = ((per_socket, facts.sockets), (per_core, share.threads // facts.threads_per_core))
    limits = [int(word) * places for word, places in wishes if word.isdigit() and int(word)]
    return max(1, min(*limits, share.threads // number(record, "CPUs/Task", 1))) if limits else None


def spread(total: int, cpus: Sequence[int]) -> list[int]:
    """Place tasks on nodes in turn, one at least on each, and no more than the node has CPUs while others have some."""
    counts = [0] * len(cpus)
    rounds = itertools.chain.from_iterable(
        [i for i, n in enumerate(cpus) if turn < n] or range(len(cpus)) for turn in itertools.count()
    )
    for node in itertools.islice(rounds, total):
        counts[node] += 1
    return counts


def node_facts(output: str) -> dict[str, NodeFacts]:
    """Return the nodes of `scontrol show node --oneliner`, by name."""
    return {
        name: NodeFacts(
            host_name=find_word(line, "NodeHostName") or name,
            threads=max(
                number(line, "CPUTot", 0),
                math.prod(number(line, key, 0) for key in ("Sockets", "CoresPerSocket", "ThreadsPerCore")),
            ),
            threads_per_core=number(line, "ThreadsPerCore", 1),
            sockets=number(line, "Sockets", 1),
            memory_bytes=memory_bytes(find_word(line, "RealMemory")),
        )
        for line in output.splitlines()
        if (name := find_word(line, "NodeName"))
    }


def expand_nodes(text: str) -> list[str]:
    """Return the names in a list of nodes: `n[001-002,7],gpu-a1` is n001, n002, n7, gpu-a1 (scontrol(1), hostlist)."""
    names: list[str] = []
    for word in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        parts = [_expand_range(part) for part in re.split(r"\[([^\]]*)\]", word)]
        # Every second part stood in brackets.
        parts[::2] = [[part] for part in re.split(r"\[[^\]]*\]", word)]
        names += map("".join, itertools.product(*parts))
    return names


def _expand_range(text: str) -> list[str]:
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and last.isdigit():
            found += [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
        else:
            found.append(part)
    return found


def compressed_counts(text: str) -> list[int]:
    """Parse counts per node: `"8(x2),4"` is `[8, 8, 4]` (sbatch(1), SLURM_TASKS_PER_NODE)."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise AllocationError(
                f"{text!r} is not a count per node as Slurm writes it, such as 8(x2),4",
                "Report this to mpiboot's developers, with Slurm's version: scontrol --version",
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
