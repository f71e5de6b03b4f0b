"""Inside the job: from the allocation to a cluster that clients can connect to, and to its end.

Runs on the first node, from the shared file system, and imports the standard library, zstandard and cryptography only;
what it starts runs from the staged prefix.
"""

import itertools
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from envpack.errors import EnvpackError
from mpiboot.batch import allocation as allocations
from mpiboot.batch import sizing as sizings
from mpiboot.batch.sizing import Sizing
from mpiboot.boot import agents as nodes
from mpiboot.boot.certificates import load_cryptography, make_job_secrets
from mpiboot.boot.launch import launch
from mpiboot.boot.signals import JobStop, Walltime, catch_signals, ignore_signals
from mpiboot.boot.staging import archive_of, orders, stage
from mpiboot.boot.state import Job
from mpiboot.boot.supervise import POLL_S, STATUS_OF_REASON, messages, supervise, wait_for_workers
from mpiboot.common.interfaces import choose
from mpiboot.common.processes import end, end_descendants
from mpiboot.common.trust import remove_files
from mpiboot.config import Config, home, parse_boot_arguments
from mpiboot.errors import MpibootError
from mpiboot.protocol.endpoint import Endpoint, new_nonce
from mpiboot.protocol.events import EventLog
from mpiboot.protocol.job_directory import JobDirectory, write_atomic
from mpiboot.protocol.node import job_folder
from mpiboot.protocol.prefix_checks import active_prefix, check_environment
from mpiboot.protocol.rank_environment import login_variables, requested_variables

logger = logging.getLogger(__name__)

NODE_TIMEOUT_S = 600.0
VALID_WITHOUT_WALLTIME_S = 30 * 86400.0
# The end: what each part is given before it is ended. Together less than 15 s, but for a command at the walltime.
COMMAND_GRACE_S = 5.0
COMMAND_GRACE_AT_WALLTIME_S = 10.0
SCHEDULER_CLOSE_S = 3.0
RANKS_CLOSE_S = 4.0
AGENTS_CLOSE_S = 10.0
# The command that started the agents is slow while it waits for a lost node; the batch system ends them after boot.
AGENTS_CLOSE_WITH_LOST_S = 3.0


def main(arguments: Sequence[str]) -> int:
    """`mpiboot boot`: the exit status is the job's."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    try:
        config = parse_boot_arguments(arguments, os.environ)
        return boot(config)
    except JobStop as stop:  # before there was anything to close
        logger.info("asked to end: %s", stop.reason)
        return STATUS_OF_REASON[stop.reason]
    except MpibootError as error:
        logger.error("mpiboot: %s", error)
        return error.exit_status


def boot(config: Config) -> int:
    """The steps 3 to 9 of a job, in their order."""
    catch_signals()
    os.environ.update(login_variables(os.environ))
    allocation = allocations.read(os.environ, config.batch_system, config.time)
    walltime = Walltime(config.warn_before, allocation.end_time)
    variables = requested_variables(config.env_var, os.environ)
    prefix = source_prefix(config)
    directory = JobDirectory.create(home(os.environ, config.home), allocation.job_key)
    logger_to(directory.boot_log)
    job = Job(
        config,
        allocation,
        directory,
        EventLog(directory.events),
        prefix,
        job_folder(Path(config.stage_root), allocation.job_key),
    )
    status, reason = 1, "failed"
    try:
        try:
            record(job)
            archive = None if config.no_stage else archive_of(job)
            answers = prepare(job, archive)
            interface = common_interface(job, answers)
            make_secrets(job)
            staged = stage(job, archive, answers, interface) if archive else {}
            sizing = size(job, answers, staged)
            launch(job, interface, sizing, variables)
            wait_for_workers(job, sizing)
            publish(job, interface, sizing)
            status, reason = supervise(job, walltime)
        finally:
            ignore_signals()  # before anything else: a second signal must not interrupt what follows
    except JobStop as stop:
        status, reason = STATUS_OF_REASON[stop.reason], stop.reason
        logger.info("asked to end: %s", reason)
    except (MpibootError, EnvpackError) as error:
        status, reason = getattr(error, "exit_status", 1), str(error)
        logger.error("mpiboot: %s", error)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        logger.exception("mpiboot: an error that should not happen; please report it")
    finally:
        close(job, status, reason)
    return status


# ---- before the ranks -----------------------------------------------------------------------------------


def logger_to(path: Path) -> None:
    """`boot.log` holds what the job's output shows."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    handler = logging.StreamHandler(os.fdopen(descriptor, "a"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)


def source_prefix(config: Config) -> Path:
    prefix = Path(config.env) if config.env else active_prefix()
    prefix = Path(os.path.abspath(prefix))  # noqa: PTH100 - a link in it is the user's name for it
    check_environment(prefix)
    return prefix


def record(job: Job) -> None:
    """`job.json` and the first events."""
    allocation, config = job.allocation, job.config
    asked = {**asdict(config), "env_var": [item.partition("=")[0] for item in config.env_var]}
    write_atomic(
        job.directory.job,
        {"asked": asked, "allocation": asdict(allocation), "python": sys.executable, "pid": os.getpid()},
    )
    logger.info(
        "job %s: %d node(s): %s; restart %d",
        allocation.job_id,
        len(allocation.nodes),
        "; ".join(
            f"{','.join(node.name for node in nodes)} with {cpus} CPUs"
            for cpus, nodes in itertools.groupby(allocation.nodes, lambda node: node.cpus)
        ),
        allocation.restart_count,
    )
    job.events.phase("stage", restart_count=allocation.restart_count, nodes=list(allocation.node_names))


def prepare(job: Job, archive: Path | None) -> nodes.Answers:
    """One agent on every node, and what each says of its node."""
    job.orders = dict(orders(job, archive))
    job.agents = nodes.Agents(job.allocation, job.orders)
    if not job.config.insecure:
        load_cryptography()  # meanwhile: from a slow file system it takes as long as the agents' start
    return job.agents.answers(NODE_TIMEOUT_S)


def make_secrets(job: Job) -> None:
    """The job's TLS files and token; its certificates name the nodes and their addresses on the interface."""
    allocation = job.allocation
    if job.config.insecure:
        logger.warning("--insecure: anyone who reaches these nodes can run code as you")
        return
    remove_files(job.directory.tls)  # those of the same job before its requeue
    remaining = allocation.end_time - time.time() if allocation.end_time else VALID_WITHOUT_WALLTIME_S
    make_job_secrets(
        job.directory.path,
        valid_for_s=max(remaining, 60.0),
        host_names=allocation.node_names,
        addresses=list(job.node_of_ip),
    )


def common_interface(job: Job, answers: nodes.Answers) -> str:
    """The interface that all nodes have; a job on one host needs no network."""
    wanted = job.config.interface
    if wanted == "auto" and not allocations.system(job.allocation.batch_system).several_hosts:
        wanted = "lo"
    interface = choose(wanted, {node: answer["interfaces"] for node, answer in answers.items()})
    job.node_of_ip = {answer["interfaces"][interface]["address"]: node for node, answer in answers.items()}
    return interface


def size(job: Job, answers: nodes.Answers, staged: nodes.Answers) -> Sizing:
    """Workers and their limits, from the allocation and what the nodes say of their memory."""
    config = job.config
    memory, in_memory = {}, {}
    for node in job.allocation.nodes:
        answer = answers[node.name]
        # Where neither batch system nor user set a limit: the share of the host's memory that the job has of its CPUs.
        share = min(1.0, node.cpus / answer["cpus"])
        memory[node.name] = node.memory_bytes or config.mem or int(answer["memory_bytes"] * share)
        if node.name in staged and answer["root_is_memory"]:
            in_memory[node.name] = staged[node.name]["size_bytes"]
    sizing = sizings.size_workers(
        job.allocation, memory, config.workers_per_node, config.cpus_per_worker, in_memory
    )
    sizings.check_min_workers(config.min_workers, sizing.n_workers)
    return sizing


# ---- the cluster ----------------------------------------------------------------------------------------


def publish(job: Job, interface: str, sizing: Sizing) -> None:
    """Step 7: from here on clients connect."""
    scheduler, allocation = job.cluster.scheduler, job.allocation
    assert scheduler
    host = scheduler["address"].rpartition("://")[2].rpartition(":")[0]
    scheme = "https" if job.config.dashboard_tls and not job.config.insecure else "http"
    endpoint = Endpoint(
        job_id=allocation.job_id,
        job_key=allocation.job_key,
        nonce=new_nonce(),
        restart_count=allocation.restart_count,
        scheduler_id=scheduler["id"],
        address=scheduler["address"],
        dashboard=f"{scheme}://{host}:{scheduler['dashboard_port']}/status",
        n_workers=len(job.cluster.workers),
        n_threads=sizing.n_threads,
        memory_bytes=sizing.memory_bytes,
        nodes=list(allocation.node_names),
        interface=interface,
        prefix=str(job.staged or job.prefix),
        source_prefix=str(job.prefix),
        end_time=allocation.end_time,
        published=time.time(),
    )
    job.directory.publish(endpoint)
    job.events.phase("ready")
    logger.info("ready: %d workers at %s on %s", endpoint.n_workers, endpoint.address, interface)


# ---- the end --------------------------------------------------------------------------------------------


def close(job: Job, status: int, reason: str) -> None:
    """Close what is open, in an order that leaves nothing: command, clients, ranks, files on the nodes, secrets."""
    job.events.phase("closing", reason=reason.partition("\n")[0])
    job.directory.endpoint.unlink(missing_ok=True)
    if job.command and job.command.poll() is None:
        job.command.terminate()  # while the cluster is still there for its last words
        end(job.command, COMMAND_GRACE_AT_WALLTIME_S if reason == "walltime" else COMMAND_GRACE_S, 0)
    if job.control and job.control.send("close", reason=reason):
        deadline = time.monotonic() + SCHEDULER_CLOSE_S
        while not job.cluster.gone and time.monotonic() < deadline:
            for _ in messages(job, POLL_S):
                pass
    if job.ranks:
        # MPI_Finalize or a nanny that hangs must not hold the nodes.
        end(job.ranks, RANKS_CLOSE_S if job.cluster.gone else 0, 1)
    end_descendants(spare=job.agents.process.pid if job.agents else None)
    if job.control:
        job.control.close()
    if job.agents:
        # Where the last worker has just died, and its nanny starts another, the agent lives.
        lost = any(since is None for since in job.cluster.lost_nodes.values())
        job.agents.close(AGENTS_CLOSE_WITH_LOST_S if lost else AGENTS_CLOSE_S)
    job.directory.clear()
    short, _, detail = reason.partition("\n")
    job.events.write("closed", reason=short, detail=detail, exit_status=status)
    logger.info("closed: %s (status %d)", short, status)
