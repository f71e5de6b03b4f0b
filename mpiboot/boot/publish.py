"""Step 7 of a boot: publishes the endpoint, by which clients connect. Only boot imports this module."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from mpiboot.batch.sizing import Sizing
from mpiboot.boot.context import Context, Network, Staged
from mpiboot.protocol.endpoint import Endpoint, new_nonce

logger = logging.getLogger(__name__)


def publish(
    context: Context, staged: Staged, network: Network, sizing: Sizing, scheduler: Mapping[str, Any]
) -> None:
    """Write `endpoint.json`.

    Parameters
    ----------
    context : Context
        Options, allocation and directories of this boot.
    staged : Staged
        The environment that the ranks run from.
    network : Network
        The interface that the ranks use.
    sizing : Sizing
        The workers of each node, all of which have answered.
    scheduler : mapping
        The scheduler's `id`, `address` and `dashboard_port`.
    """
    allocation, config = context.allocation, context.config
    host = scheduler["address"].rpartition("://")[2].rpartition(":")[0]
    scheme = "https" if config.dashboard_tls and not config.insecure else "http"
    endpoint = Endpoint(
        job_id=allocation.job_id,
        job_key=allocation.job_key,
        nonce=new_nonce(),
        restart_count=allocation.restart_count,
        scheduler_id=scheduler["id"],
        address=scheduler["address"],
        dashboard=f"{scheme}://{host}:{scheduler['dashboard_port']}/status",
        n_workers=sizing.n_workers,
        n_threads=sizing.n_threads,
        memory_bytes=sizing.memory_bytes,
        nodes=list(allocation.node_names),
        interface=network.interface,
        addresses=network.addresses,
        prefix=str(staged.prefix),
        source_prefix=str(context.source),
        end_time=allocation.end_time,
        published=time.time(),
    )
    context.directory.publish(endpoint)
    context.events.phase("ready")
    logger.info("ready: %d workers at %s on %s", endpoint.n_workers, endpoint.address, endpoint.interface)
