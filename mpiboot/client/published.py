"""`PublishedEndpoint`: the endpoint in a job's directory, read and verified before anything connects to it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from distributed import Security

from mpiboot.client.reach import no_route_remedy
from mpiboot.client.verify import ATTEMPT_S, ask_scheduler, check_identity, refuse_plain
from mpiboot.common.trust import check_trusted
from mpiboot.errors import BatchError, RendezvousError
from mpiboot.protocol.endpoint import Endpoint
from mpiboot.protocol.secrets import client_security_arguments

if TYPE_CHECKING:
    from mpiboot.client.job import Job


class PublishedEndpoint:
    """The endpoint that a job publishes; an endpoint from before the job was requeued is ignored."""

    def __init__(self, job: Job, insecure: bool) -> None:
        self.job = job
        self.insecure = insecure
        # The nonces of the endpoints read so far, from earlier runs of the job and from this one.
        self._void: set[str] = set()
        self._valid: set[str] = set()

    def read(self) -> Endpoint | None:
        """Return the endpoint that this run of the job has published; None if it has published none yet.

        Raises
        ------
        RendezvousError, SecurityError
            The file cannot be trusted, belongs to another job, or is no endpoint.
        """
        directory = self.job.directory
        try:
            # Opening the directory makes NFS forget its cache of missing names.
            os.listdir(directory.path)  # noqa: PTH208
            check_trusted(directory.path, "directory")
            endpoint = directory.read_endpoint()
        except FileNotFoundError:
            return None
        if endpoint is None or endpoint.nonce in self._void:
            return None
        if endpoint.job_key != directory.key:
            raise RendezvousError(
                f"{directory.endpoint} is of job {endpoint.job_key}, not of {directory.key}",
                f"Stop the job: mpiboot stop {self.job.job_id}; and submit it again",
            )
        if endpoint.nonce not in self._valid:
            try:
                current = self.job.batch.restarts(self.job.job_id) == endpoint.restart_count
            except BatchError as error:
                raise RendezvousError(
                    f"{self.job.batch.name} does not say how often the job was requeued: {error.problem}",
                    error.remedy,
                ) from error
            (self._valid if current else self._void).add(endpoint.nonce)
            return endpoint if current else None
        return endpoint

    def verify(self, endpoint: Endpoint) -> Security | None:
        """Check that the scheduler which published the endpoint answers there; return the Client's TLS settings.

        Raises
        ------
        RendezvousError
            No scheduler, or another one, answers there.
        MpibootError
            The endpoint is not encrypted and `insecure` is false, or the scheduler runs another version of Python.
        """
        security = None
        if endpoint.address.startswith("tls://"):
            security = Security(**client_security_arguments(self.job.directory.path))
        else:
            refuse_plain(endpoint.address, self.insecure)
        try:
            identity = ask_scheduler(endpoint.address, security, ATTEMPT_S)
        except RendezvousError as error:
            where = f"{error.problem} (interface {endpoint.interface} of {endpoint.nodes[0]})"
            raise RendezvousError(
                where, no_route_remedy(endpoint, self.job.job_id) or error.remedy
            ) from error
        check_identity(identity, endpoint.scheduler_id, endpoint.address, endpoint.source_prefix)
        return security
