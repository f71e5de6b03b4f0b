"""`mpiboot boot`, inside the job: from the allocation to a cluster that clients can connect to, and to its end.

Runs on the first node, from the shared file system, so it imports few modules; the processes that it starts run from the
staged prefix. The command line imports this module; only it imports the rest of `mpiboot.boot`.
"""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envpack.errors import ExplainedError
from mpiboot.batch import allocation as allocations
from mpiboot.batch.allocation import Allocation, AllocationSystem
from mpiboot.batch.runner import run
from mpiboot.boot.agents import Agents
from mpiboot.boot.closing import Opened, close, status_of_stop
from mpiboot.boot.cluster import Cluster
from mpiboot.boot.command import start_command
from mpiboot.boot.context import Context
from mpiboot.boot.control import Control
from mpiboot.boot.launch import prepare_ranks, start_ranks
from mpiboot.boot.preparation import (
    choose_network,
    log_to,
    make_secrets,
    record,
    size,
    source_prefix,
)
from mpiboot.boot.publish import publish
from mpiboot.boot.signals import ASK_TIMEOUT_S, JobStop, Walltime, catch_signals, ignore_signals
from mpiboot.boot.staging import agent_orders, find_archive, stage_all_nodes
from mpiboot.boot.supervise import supervise, wait_for_workers
from mpiboot.common.faults import named_errors, system_error, unexpected
from mpiboot.config import Config, home, parse_boot_arguments
from mpiboot.errors import BatchError
from mpiboot.protocol.events import EventLog
from mpiboot.protocol.job_directory import JobDirectory
from mpiboot.protocol.node import job_folder
from mpiboot.protocol.prefix_checks import check_environment
from mpiboot.protocol.rank_environment import login_variables, requested_variables

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run `mpiboot boot`; return the job's exit status."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    logging.raiseExceptions = False  # if a log cannot be written, the job goes on without a traceback of that
    try:
        config = parse_boot_arguments(arguments, os.environ)
        with named_errors():
            return boot(config)
    except JobStop as stop:  # before there was anything to close
        logger.info("asked to end: %s", stop.reason)
        return status_of_stop(stop.reason, config)
    except ExplainedError as error:
        logger.error("mpiboot: %s", error)
        return error.exit_status
    except Exception as error:
        logger.error("mpiboot: %s", unexpected(error))
        return 1


def boot(config: Config) -> int:
    """Boot the cluster, watch it, and close it, however it ends; return the job's exit status."""
    catch_signals()
    os.environ.update(login_variables(os.environ))
    allocation = allocations.read_allocation(os.environ, config.batch_system, config.time)
    system = allocations.system(allocation.batch_system)
    walltime = Walltime(
        config.warn_before,
        allocation.end_time,
        lambda: end_time_now(system, allocation, walltime),
    )
    requested = requested_variables(config.env_var, os.environ)
    source = source_prefix(config)
    directory = JobDirectory.create(home(os.environ, config.home), allocation.job_key)
    log_to(directory.boot_log)
    context = Context(
        config=config,
        allocation=allocation,
        system=system,
        directory=directory,
        events=EventLog(directory.events),
        source=source,
        job_folder=job_folder(Path(config.stage_root), allocation.job_key),
    )
    opened = Opened()
    status, reason = 1, "failed"
    try:
        try:
            status, reason = run_cluster(context, opened, requested, walltime)
        finally:
            ignore_signals()  # before anything else: a second signal must not interrupt what follows
    except JobStop as stop:
        status, reason = status_of_stop(stop.reason, config), stop.reason
        logger.info("asked to end: %s", reason)
    except ExplainedError as error:
        status, reason = error.exit_status, str(error)
        logger.error("mpiboot: %s", error)
    except OSError as error:
        reason = str(system_error(error))
        logger.error("mpiboot: %s", reason)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        logger.error("mpiboot: %s", unexpected(error))
    finally:
        close(context, opened, status, reason)
    return status


def end_time_now(system: AllocationSystem, allocation: Allocation, walltime: Walltime) -> float | None:
    """Ask the batch system, in a hurry, when it ends the job; if it does not answer, the last known end counts."""

    def run_quickly(command: Sequence[str], **options: Any) -> str:
        return run(command, **{**options, "timeout_s": ASK_TIMEOUT_S})

    try:
        return system.end_time(allocation, run_quickly)
    except BatchError as error:
        logger.warning(
            "the walltime ends now, and the batch system did not say whether that has changed: %s", error
        )
        return walltime.end_time


def run_cluster(
    context: Context, opened: Opened, requested: Mapping[str, str], walltime: Walltime
) -> tuple[int, str]:
    """Take the steps of a boot, from the first record to the cluster's end.

    Parameters
    ----------
    context : Context
        Options, allocation and directories of this boot.
    opened : Opened
        Each step stores here what must be closed, as soon as it exists.
    requested : mapping of str to str
        The variables of `--env-var`.
    walltime : Walltime
        The job's clock.

    Returns
    -------
    tuple of int and str
        The job's exit status, and why the cluster ended.
    """
    record(context)
    check_environment(context.source, {**os.environ, **requested})
    archive = find_archive(context)
    orders = agent_orders(context, archive)
    make_secrets(context)
    context.events.write("step", step="agents")
    opened.agents = agents = Agents(context, orders)
    reports = agents.reports()
    network = choose_network(context, agents, reports)
    staged = stage_all_nodes(context, agents, orders, archive, reports)
    sizing = size(context, reports, staged)
    variables = prepare_ranks(context, staged, requested, network, sizing)
    opened.cluster = cluster = Cluster(Control(context.job_folder), context.events, network.node_of_address)
    agents.guard_launch(context.config.start_timeout)
    opened.ranks = ranks = start_ranks(context, staged, variables, network, sizing)
    scheduler = wait_for_workers(context, agents, cluster, ranks, sizing)
    agents.guard_launch(0)
    publish(context, staged, network, sizing, scheduler)
    cluster.send("published")
    opened.command = command = start_command(context, variables, scheduler)
    return supervise(context, agents, cluster, ranks, command, walltime)
