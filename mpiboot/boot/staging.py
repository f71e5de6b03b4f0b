"""Step 4 of a boot: the archive reaches every node, by one of three transports. Standard library and zstandard only.

| transport | who reads the archive | what else it costs |
|---|---|---|
| `direct` | every node | nothing |
| the batch system's | its daemon on the first node | a copy in each node's staging root, while it is staged |
| `mpi` | rank 0 | the start of mpirun, and of mpi4py, from the shared file system |
"""

import json
import logging
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from envpack.common.places import HOME_VARIABLE
from mpiboot.batch import allocation as allocations
from mpiboot.batch import registry
from mpiboot.batch.allocation import Placement
from mpiboot.boot import agents as nodes
from mpiboot.boot.launch import launcher, launcher_environment
from mpiboot.boot.state import Job
from mpiboot.common.units import show_duration, show_size
from mpiboot.errors import EnvironmentUnfitError, StageError, UsageError
from mpiboot.protocol.node import AgentOrders
from mpiboot.protocol.variables import JOB_KEY_VARIABLE

logger = logging.getLogger(__name__)

STAGE_TIMEOUT_S = 1800.0
# What a shared file system of 1 GB/s delivers while mpirun and mpi4py start from it: below, `direct` is done sooner.
AUTO_DIRECT_BYTES = 4 * 1024**3


def stage(job: Job, archive: Path, answers: nodes.Answers, interface: str) -> nodes.Answers:
    """Stage the archive on every node.

    Parameters
    ----------
    answers
        What each node's agent said first: `has_stage`.

    Returns
    -------
    dict
        Per node what envpack says of it: `prefix`, `transport`, `seconds`, `size_bytes`, `bytes_read`, ….

    Raises
    ------
    StageError
        Some nodes failed: all of them are named, each with its reason.
    """
    lacking = [node for node, answer in answers.items() if not answer["has_stage"]]
    transport = choose(
        job.config.transport, job.allocation.batch_system, len(answers), len(lacking), archive.stat().st_size
    )
    logger.info("staging %s: %d of %d nodes lack it; %s", archive, len(lacking), len(answers), transport)
    found = {"direct": direct, "mpi": mpi}.get(transport, carried)(job, archive, interface)
    staged = {node: answer["stage"] for node, answer in found.items()}
    job.staged = Path(job.orders["prefix"])
    for node, result in staged.items():
        job.events.write("staged", **{**result, "host": node})
        logger.info(
            "%s: %s %s in %s",
            node,
            "reused" if result["reused"] else "staged",
            show_size(result["size_bytes"]),
            show_duration(result["seconds"]),
        )
    return staged


def choose(asked: str, batch_system: str, n_nodes: int, n_lacking: int, size_bytes: int) -> str:
    """The transport: as asked; `auto` is `direct` until all reads together come to 4 GiB, then `mpi`.

    A node that has the stage reads next to nothing, so where all have it `direct` is used, whatever was asked for.
    Measured on three nodes: a broadcast costs 4 to 7 s for the start of mpirun from the shared file system, and
    reading three times 144 MB less than that, from a disk and through sshfs.
    """
    if asked in registry.transports() and asked != registry.facts(batch_system).transport:
        raise UsageError(
            f"--transport {asked}: a job of {registry.facts(batch_system).title} cannot use it. Use direct or mpi"
        )
    if n_lacking == 0 or n_nodes == 1:
        return "direct"
    if asked != "auto":
        return asked
    return "direct" if n_lacking * size_bytes <= AUTO_DIRECT_BYTES else "mpi"


def direct(job: Job, archive: Path, interface: str) -> nodes.Answers:
    return ask_agents(job, archive, "direct")


def ask_agents(job: Job, archive: Path, transport: str, *, remove: bool = False) -> nodes.Answers:
    assert job.agents
    job.agents.ask({"archive": str(archive), "transport": transport, "remove_archive": remove})
    return job.agents.answers(STAGE_TIMEOUT_S)


def carried(job: Job, archive: Path, interface: str) -> nodes.Answers:
    """The batch system copies the archive to every node; each agent stages and removes its copy."""
    copy = job.local_folder / "archive"
    run(allocations.system(job.allocation.batch_system).carry_command(archive, copy), dict(os.environ))
    return ask_agents(job, copy, str(registry.facts(job.allocation.batch_system).transport), remove=True)


def mpi(job: Job, archive: Path, interface: str) -> nodes.Answers:
    """One rank per node, from the environment on the shared file system: the staged one is not there yet."""
    place = Placement(job.allocation.node_names, (1,) * len(job.allocation.nodes))
    orders = {**job.orders, "archive": str(archive)}
    rank = [str(job.prefix / "bin/python"), "-I", "-m", "mpiboot.agent.broadcast", json.dumps(orders)]
    variables = {
        **os.environ,
        JOB_KEY_VARIABLE: job.allocation.job_key,
        "TMPDIR": str(job.local_folder),
    }
    start = launcher(job, job.prefix, variables, place, interface, rank)
    job.directory.host_file.write_text(start.host_file)
    output, complaints = run(start.command, launcher_environment(job, variables, start), check=False)
    found = nodes.parse_answers(output)
    if len(found) < len(job.allocation.nodes) or any("error" in answer for answer in found.values()):
        nodes.fail(job.allocation.node_names, found, complaints.decode(errors="replace").strip()[-2000:])
    return {node: found[node] for node in job.allocation.node_names}


def run(command: list[str], environ: Mapping[str, str], check: bool = True) -> tuple[bytes, bytes]:
    """What a command printed, on stdout and on stderr."""
    try:
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=STAGE_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StageError(f"{command[0]}: {error}. Use --transport direct") from error
    if check and done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-2000:]
        raise StageError(f"{command[0]} ended with status {done.returncode}: {said}. Use --transport direct")
    return done.stdout, done.stderr


def archive_of(job: Job) -> Path:
    """The archive that submit made; else the environment is packed now, by a Python of its own: it imports conda-pack."""
    if job.config.archive:
        return Path(job.config.archive)
    logger.info("packing %s (submit does so beforehand)", job.prefix)
    pack = subprocess.run(
        [str(job.prefix / "bin/python"), "-I", "-m", "envpack", "pack", "--prefix", str(job.prefix)],
        env={**os.environ, HOME_VARIABLE: str(job.directory.path.parent.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if pack.returncode:
        raise EnvironmentUnfitError(f"{job.prefix} could not be packed: {pack.stderr.strip()[-2000:]}")
    return Path(pack.stdout.strip())


def orders(job: Job, archive: Path | None) -> AgentOrders:
    """What every agent is told at its start."""
    system = allocations.system(job.allocation.batch_system)
    told: AgentOrders = {
        "first_node": job.allocation.nodes[0].name,
        "job_directory": str(job.directory.path),
        "root": job.config.stage_root,
        "job_key": job.allocation.job_key,
        "threads": job.allocation.least_cpus,
        "prefix": None,
        "pack_id": None,
        "node_variable": system.node_variable,
        "cancel_command": system.cancel_command(job.allocation.job_id),
    }
    if archive:
        from envpack.archive.encoding import read_index
        from envpack.common.places import staged_prefix

        index = read_index(archive)
        told["pack_id"] = index.pack_id
        told["prefix"] = str(staged_prefix(job.config.stage_root, index.pack_id, index.name))
    return told
