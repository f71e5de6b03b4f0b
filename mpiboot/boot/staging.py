"""Step 4 of a boot: brings the archive to every node, by one of three transports, and stages it there.

| transport | who reads the archive | further cost |
|---|---|---|
| `direct` | every node | nothing |
| `tree` | the first agent that needs it (`agent.tree`) | encryption; a copy on each node until all nodes are staged |
| the batch system's | its daemon on the first node | a copy on each node until that node is staged |

Only boot imports this module.
"""

import logging
import os
import shlex
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envpack.common.places import HOME_VARIABLE
from envpack.errors import ArchiveError
from mpiboot.batch import registry
from mpiboot.batch.runner import run
from mpiboot.boot.agents import Agents
from mpiboot.boot.context import Context, Staged
from mpiboot.common.ports import other_ports
from mpiboot.common.units import show_duration, show_size
from mpiboot.errors import BatchError, EnvironmentUnfitError, StageError, UsageError
from mpiboot.protocol.channel_messages import NodeReport, Orders, StageOrder, StageReport

logger = logging.getLogger(__name__)

STAGE_TIMEOUT_S = 1800.0
# If all nodes together read less than this, their reads take less time than the encryption of a tree: use `direct`.
AUTO_DIRECT_BYTES = 4 * 1024**3


def find_archive(context: Context) -> Path | None:
    """Return the archive to stage: the one that submit made; without one, pack the environment now.

    Returns
    -------
    path or None
        None with `--no-stage`.

    Raises
    ------
    EnvironmentUnfitError
        The environment could not be packed.
    """
    if context.config.no_stage:
        return None
    if context.config.archive:
        return Path(context.config.archive)
    source = context.source
    logger.info("packing %s (submit does so beforehand)", source)
    context.events.write("step", step="pack")
    # In a separate Python: packing imports conda-pack, and boot must start with few modules.
    command = pack_command(source, context.config.pack_exclude)
    with subprocess.Popen(
        command,
        env={**os.environ, HOME_VARIABLE: str(context.directory.path.parent.parent)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        errors="replace",
    ) as packing:
        assert packing.stdout and packing.stderr
        last: deque[str] = deque(maxlen=20)
        try:
            for line in packing.stderr:  # warnings, and whom it waits for
                logger.info("%s", line.rstrip())
                last.append(line)
            archive = packing.stdout.read().strip()
        except BaseException:  # the job ends
            packing.terminate()
            raise
    if packing.returncode:
        raise EnvironmentUnfitError(
            f"{source} could not be packed: {''.join(last).strip()}", f"Try it by hand: {shlex.join(command)}"
        )
    return Path(archive)


def pack_command(source: Path, exclude: Sequence[str]) -> list[str]:
    """Return the command that packs an environment with its own envpack."""
    options = [f"--exclude={glob}" for glob in exclude]
    return [f"{source}/bin/python", "-I", "-m", "envpack", "pack", "--prefix", str(source), *options]


def agent_orders(context: Context, archive: Path | None) -> Orders:
    """Return the orders that every agent gets when it has dialled.

    Raises
    ------
    StageError
        The archive cannot be used.
    """
    pack_id = prefix = None
    if archive:
        from envpack.archive.encoding import read_index
        from envpack.common.places import staged_prefix

        try:
            index = read_index(archive)
        except ArchiveError as error:
            raise StageError(
                error.problem,
                f"Pack the environment, and submit the job again: "
                f"{shlex.join(pack_command(context.source, context.config.pack_exclude))}",
            ) from error
        pack_id = index.pack_id
        prefix = str(staged_prefix(context.config.stage_root, index.pack_id, index.name))
    ports = other_ports(context.config.worker_port)
    return Orders(
        number=0,
        first_node=context.allocation.nodes[0].name,
        n_nodes=len(context.allocation.nodes),
        root=context.config.stage_root,
        job_key=context.allocation.job_key,
        threads=context.allocation.least_cpus,
        prefix=prefix,
        pack_id=pack_id,
        cancel_command=context.system.cancel_command(context.allocation.job_id),
        interface=context.config.interface,
        job_variables=registry.job_variables(),
        ports=[ports[0], ports[-1]],
    )


def stage_all_nodes(
    context: Context,
    agents: Agents,
    orders: Orders,
    archive: Path | None,
    reports: Mapping[str, NodeReport],
) -> Staged:
    """Stage the archive on every node.

    Parameters
    ----------
    context : Context
        Options, allocation and directories of this boot.
    agents, orders : Agents, Orders
        The agents, and the orders that they got when they dialled.
    archive : path or None
        None: the ranks run from the source prefix.
    reports : mapping of str to NodeReport
        Each node's report.

    Raises
    ------
    StageError
        Some nodes failed: the message names each of them with its reason.
    """
    if archive is None or orders.prefix is None:
        return Staged(context.source, {})
    n_lacking = sum(not report.has_stage for report in reports.values())
    transport = choose_transport(
        context.config.transport,
        context.allocation.batch_system,
        len(reports),
        n_lacking,
        archive.stat().st_size,
    )
    logger.info("staging %s: %d of %d nodes lack it; %s", archive, n_lacking, len(reports), transport)
    context.events.write("step", step="copy", n_lacking=n_lacking, n_nodes=len(reports))
    if transport == "direct":
        stages = agents.stage(_order(archive, transport), STAGE_TIMEOUT_S)
    elif transport == "tree":
        lacking = [node for node, report in reports.items() if not report.has_stage]
        stages = agents.stage(_order(archive, transport, tree=lacking), STAGE_TIMEOUT_S)
    else:
        stages = _carry(context, agents, archive, transport)
    results: dict[str, dict[str, Any]] = {node: report.stage for node, report in stages.items()}
    for node, result in results.items():
        context.events.write("staged", **{**result, "host": node})
        logger.info("%s: %s", node, show_stage(result))
        if "passed_by" in result:
            logger.warning("%s took the archive from elsewhere: %s", node, result["passed_by"])
    sizes = {node: result["size_bytes"] for node, result in results.items()}
    return Staged(Path(orders.prefix), sizes)


def show_stage(result: Mapping[str, Any]) -> str:
    """Return what staging did on a node, in words.

    Parameters
    ----------
    result : mapping
        `StageReport.stage`.
    """
    did = "reused" if result["reused"] else "staged"
    parts = [f"{did} {show_size(result['size_bytes'])} in {show_duration(result['seconds'])}"]
    if result["linked"]:
        parts.append(f"{result['linked']} files linked from an older copy")
    if result["repaired"]:
        parts.append(f"{result['repaired']} damaged or lost files put back")
    if result["evicted"]:
        parts.append(f"removed for want of room: {', '.join(result['evicted'])}")
    return "; ".join(parts)


def choose_transport(wanted: str, batch_system: str, n_nodes: int, n_lacking: int, size_bytes: int) -> str:
    """Return the transport to use: `wanted`; for `auto`, `direct` if the nodes read at most 4 GiB in total, else `tree`.

    A node that already has the environment reads almost nothing; if all nodes have it, the transport is `direct`,
    whatever the user wanted.

    Raises
    ------
    UsageError
        The transport is that of another batch system.
    """
    facts = registry.facts(batch_system)
    if wanted in registry.transports() and wanted != facts.transport:
        raise UsageError(
            f"--transport {wanted}: a job of {facts.title} cannot use it", "Use --transport direct or tree"
        )
    if n_lacking == 0 or n_nodes == 1:
        return "direct"
    if wanted != "auto":
        return wanted
    return "direct" if n_lacking * size_bytes <= AUTO_DIRECT_BYTES or n_lacking == 1 else "tree"


def _order(
    archive: Path, transport: str, *, tree: Sequence[str] = (), carried: Path | None = None
) -> StageOrder:
    """Return the order to stage the archive."""
    from envpack.archive.encoding import index_start

    return StageOrder(
        number=1,
        archive=str(archive),
        transport=transport,
        carried=str(carried) if carried else None,
        tree=list(tree),
        index_start=index_start(archive) if tree else 0,
    )


def _carry(context: Context, agents: Agents, archive: Path, transport: str) -> dict[str, StageReport]:
    """Let the batch system copy the archive to every node; each agent stages and removes its copy."""
    copy = context.job_folder / "archive"
    try:
        run(
            context.system.carry_command(archive, copy),
            environ=context.job_environment(os.environ),
            timeout_s=STAGE_TIMEOUT_S,
        )
    except BatchError as error:
        raise StageError(error.problem, "Submit the job again with --transport direct") from error
    return agents.stage(_order(archive, transport, carried=copy), STAGE_TIMEOUT_S)
