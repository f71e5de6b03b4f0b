"""Step 5 of a boot: writes the ranks' environment to a file, and starts the ranks with a launcher.

Only boot imports this module.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from envpack.common.prefix import BASE_FOLDER
from mpiboot.batch import registry
from mpiboot.batch.sizing import NodeWorkers, Sizing
from mpiboot.boot import launchers
from mpiboot.boot.choose_launcher import choose_launcher, launcher_environment
from mpiboot.boot.context import Context, Network, Staged
from mpiboot.boot.ports import RankPorts, choose_ports
from mpiboot.common.processes import keep_orphans
from mpiboot.protocol import rank_environment
from mpiboot.protocol.environment_table import EnvironmentTable
from mpiboot.protocol.job_directory import write_atomic
from mpiboot.protocol.node import RankPlan
from mpiboot.protocol.variables import DEVICES, NODE_FILES

logger = logging.getLogger(__name__)


def prepare_ranks(
    context: Context,
    staged: Staged,
    requested: Mapping[str, str],
    network: Network,
    sizing: Sizing,
) -> dict[str, str]:
    """Write `rank-environment.json`, the plan that each rank's stand-in reads first.

    Parameters
    ----------
    context : Context
        Options, allocation and directories of this boot.
    staged : Staged
        The environment that the ranks run from.
    requested : mapping of str to str
        The variables of `--env-var`.
    network : Network
        The interface that the ranks use.
    sizing : Sizing
        The workers of each node.

    Returns
    -------
    dict of str to str
        The ranks' environment, without the variables that the launcher adds.

    Raises
    ------
    StageError
        The prefix could not be activated.
    UsageError
        A port of the user's is taken, or `--worker-port` has too few.
    """
    context.events.phase("launch")
    config, directory = context.config, context.directory
    ports = choose_ports(config, sizing)
    table = EnvironmentTable(registry.variable_prefixes(), registry.kept_variables())
    variables = rank_environment.rank_variables(
        os.environ,
        requested,
        table=table,
        mpi_only=registry.step_variables(),
        source=context.source,
        prefix=staged.prefix,
        job_directory=directory.path,
        job_folder=context.job_folder,
        interface=",".join(network.devices) if context.system.several_hosts else None,
        idle_timeout_s=None if config.command else config.idle_timeout,
        encrypted=not config.insecure,
        dashboard_tls=config.dashboard_tls,
        dashboard_origins=config.dashboard_origins,
        ports=ports.variables,
    )
    plan = RankPlan(
        set=variables,
        unset=table.not_of_launcher(),
        nodes_own=[*DEVICES, *NODE_FILES],
        required_files=[] if config.insecure else sorted(map(str, directory.tls.iterdir())),
        agent_folder=str(context.job_folder),
        command=rank_command(context, staged, network, ports),
        node_arguments={
            name: [*worker_arguments(node), "--interface", network.names[name]]
            for name, node in sizing.by_node.items()
        },
        server=str(module_file(staged.prefix, "rank/fork_server.py")),
        lock=str(staged.prefix) if staged.is_copy else None,
    )
    write_atomic(directory.rank_environment, plan)
    return variables


def rank_command(context: Context, staged: Staged, network: Network, ports: RankPorts) -> list[str]:
    """The command that all ranks share: dask-mpi, with the staged prefix's Python."""
    return [
        # The prefix may have no bin/dask-mpi: the package may lie in the base interpreter's site-packages.
        *(str(staged.prefix / "bin/python"), str(module_file(staged.prefix, "rank/run_dask_mpi.py"))),
        *("--scheduler-file", str(context.directory.scheduler_file)),
        *("--protocol", "tcp" if context.config.insecure else "tls"),
        *("--local-directory", str(context.job_folder)),
        *("--worker-class", "distributed.Nanny"),
        *("--scheduler-port", str(ports.scheduler), "--dashboard-address", f":{ports.dashboard}"),
        *(["--worker-options", json.dumps(ports.worker_options)] if ports.worker_options else []),
        *("--name", "mpiboot"),
    ]


def worker_arguments(node: NodeWorkers) -> list[str]:
    """Return the arguments of one node's ranks, which follow the command that all ranks share."""
    return ["--nthreads", str(node.threads_per_worker), "--memory-limit", str(node.memory_limit_bytes)]


def start_ranks(
    context: Context, staged: Staged, variables: Mapping[str, str], network: Network, sizing: Sizing
) -> "subprocess.Popen[bytes]":
    """Have a launcher start a stand-in for every rank.

    Returns
    -------
    Popen
        The launcher; what it and the ranks print goes to `ranks.log`.

    Raises
    ------
    MpibootError
        No launcher fits; see `choose_launcher`.
    """
    place = launchers.placement({name: node.n_workers for name, node in sizing.by_node.items()})
    stand_in = [
        *(str(staged.prefix / "bin/python"), "-I", "-S"),
        *(str(module_file(staged.prefix, "rank/stand_in.py")), str(context.directory.path)),
    ]
    launch = choose_launcher(context, staged.prefix, variables, place, network.for_mpi, stand_in)
    logger.info("%s", " ".join(launch.command))
    context.directory.host_file.write_text(launch.host_file)
    keep_orphans()
    with context.directory.ranks_log.open("ab") as log:
        return subprocess.Popen(
            launch.command,
            env=launcher_environment(context, variables, launch),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def module_file(prefix: Path, name: str) -> Path:
    """Return a file of mpiboot in a staged prefix, or in the base interpreter there; else this mpiboot's own file.

    It is its own if nothing is staged, and if the install is editable.
    """
    file = Path(__file__).parents[1] / name
    for source, copy in ((sys.prefix, prefix), (sys.base_prefix, prefix / BASE_FOLDER)):
        if file.is_relative_to(source) and (staged := copy / file.relative_to(source)).exists():
            return staged
    return file
