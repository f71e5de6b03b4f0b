"""All uses of undocumented names of distributed and of tornado.

Client and preloads import this module, and use such names nowhere else; it imports only these two. Each name was seen
in distributed 2026.8.0 and tornado 6.6.1, and has a test of its own in tests/unit/test_distributed_internals.py, which
shows which of them a new release has removed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

from distributed import Client, Nanny, Scheduler, Security
from distributed.comm import connect
from distributed.comm.tcp import TLSListener
from distributed.core import Status, rpc
from distributed.deploy.cluster import Cluster
from distributed.node import ServerNode
from distributed.utils import Log, Logs
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.tcpserver import TCPServer

# The scheduler's own client, which holds the tasks of `fire_and_forget` (client.py).
FIRE_AND_FORGET_CLIENT = "fire-and-forget"

# The logger of failed TLS handshakes (comm/tcp.py).
TLS_LOGGER = "distributed.comm.tcp"


def after_http_start(act: Callable[[Any], None]) -> None:
    """Call `act` with every scheduler or worker of this process as soon as it has started its HTTP server.

    `ServerNode.start_http_server` binds, listens and returns within one step of the event loop, so no request is served
    before `act` has run. A second call changes nothing.

    Parameters
    ----------
    act : callable
        Called with the `distributed.Scheduler` or `distributed.Worker`.
    """
    start = ServerNode.start_http_server
    if hasattr(start, "mpiboot_act"):
        return

    @functools.wraps(start)
    def start_http_server(server: Any, *args: Any, **kwargs: Any) -> None:
        start(server, *args, **kwargs)
        act(server)

    start_http_server.mpiboot_act = act  # type: ignore[attr-defined]
    ServerNode.start_http_server = start_http_server


def http_application(server: Any) -> Any:
    """Return the tornado application of a scheduler or worker, whose HTTP server has started."""
    return server.http_server.request_callback


def replace_http_application(server: Any, application: Any) -> None:
    """Let another tornado application or router answer the HTTP requests to a scheduler or worker."""
    server.http_server.request_callback = application


def after_tls_start(act: Callable[[TLSListener, TCPServer], None]) -> None:
    """Call `act` with every TLS listener of this process's scheduler, worker or nanny as soon as it listens.

    `BaseTCPListener.start` binds, listens and returns within one step of the event loop, so no connection is accepted
    before `act` has run. A second call changes nothing.

    Parameters
    ----------
    act : callable
        Called with the listener and its TCP server.
    """
    start = TLSListener.start
    if hasattr(start, "mpiboot_act"):
        return

    @functools.wraps(start)
    async def start_listening(listener: TLSListener) -> None:
        await start(listener)
        act(listener, listener.tcp_server)

    start_listening.mpiboot_act = act  # type: ignore[attr-defined]
    TLSListener.start = start_listening


def after_handshake(listener: TLSListener, act: Callable[[IOStream], None]) -> None:
    """Call `act` with the stream of each connection to a listener once its TLS handshake has succeeded."""
    on_connection = listener.on_connection

    async def connected(comm: Any, *args: Any, **kwargs: Any) -> None:
        act(comm.stream)
        await on_connection(comm, *args, **kwargs)

    listener.on_connection = connected


def is_handshake_failure(record: logging.LogRecord) -> bool:
    """Whether a record of the logger `TLS_LOGGER` reports a TLS handshake that failed."""
    return "TLS handshake failed" in str(record.msg)


def accept_connections(
    server: TCPServer, accept: Callable[[socket.socket, int], None]
) -> list[socket.socket]:
    """Let `accept` accept the connections to a server that listens, in the place of tornado's own function.

    Parameters
    ----------
    server : tornado.tcpserver.TCPServer
        A server that has just started to listen, such as `Scheduler.http_server`.
    accept : callable
        Called with the listening socket and `IOLoop.READ` whenever a connection can be accepted.

    Returns
    -------
    list of socket
        The listening sockets; `server.stop()` closes them.
    """
    loop = IOLoop.current()
    for number, listening in server._sockets.items():
        server._handlers[number]()  # removes tornado's
        loop.add_handler(listening, accept, IOLoop.READ)
        server._handlers[number] = functools.partial(loop.remove_handler, listening)
    return list(server._sockets.values())


def serve_connection(server: TCPServer, connection: socket.socket, address: Any) -> None:
    """Serve a connection that was accepted: `server.handle_stream` is called with its stream.

    Raises
    ------
    OSError
        The other side has closed the connection.
    """
    server._handle_connection(connection, address)


def request_stream(request: HTTPServerRequest) -> IOStream:
    """Return the stream over which a request came."""
    return request.connection.stream


def scheduler_dashboard_port(scheduler: Scheduler) -> int | None:
    """Return the port of the scheduler's HTTP server; None if it has none."""
    dashboard = scheduler.services.get("dashboard")
    return dashboard.port if dashboard else None


def is_worker_dashboard(scheduler: Scheduler, host: str, port: int) -> bool:
    """Whether a worker of the scheduler has its HTTP server at that host and port."""
    workers = scheduler.workers.values()
    return any(worker.host == host and worker.services.get("dashboard") == port for worker in workers)


def watch_for_hung_workers(scheduler: Scheduler, interval_s: float) -> None:
    """Let the scheduler check for silent workers at least every `interval_s` seconds.

    By default the interval is the allowed silence itself (`distributed.scheduler.worker-ttl`), so that a hung worker may
    be noticed only after twice that time. Without `worker-ttl`, the scheduler does not check.
    """
    if check := scheduler.periodic_callbacks.get("worker-ttl"):
        check.callback_time = min(check.callback_time, interval_s * 1000)


def hung_workers(topic: str, message: Any) -> tuple[list[str], float]:
    """Return the hung workers that an event of the scheduler names, and how long they were silent, in seconds.

    Parameters
    ----------
    topic, message
        As `SchedulerPlugin.log_event` takes them.

    Returns
    -------
    tuple[list[str], float]
        The workers' addresses, and the silence; the list is empty for any other event.
    """
    if topic == "scheduler" and message.get("action") == "worker-ttl-timed-out":
        return list(message["workers"]), float(message["ttl"])
    return [], 0.0


def has_work(scheduler: Scheduler) -> bool:
    """Whether the scheduler has tasks to run, or has just had some."""
    return scheduler.check_idle() is None


def user_clients(scheduler: Scheduler) -> list[str]:
    """Return the names of the clients that are connected to the scheduler."""
    return [name for name in scheduler.clients if name != FIRE_AND_FORGET_CLIENT]


def on_worker_exit(nanny: Nanny, report: Callable[[int], None]) -> None:
    """Call `report` with the exit status of each worker process of a nanny, before the nanny starts another.

    A second call for one nanny changes nothing.
    """
    on_exit = nanny._on_worker_exit_sync
    if hasattr(on_exit, "mpiboot_report"):
        return

    def reporting(exit_status: int) -> None:
        report(exit_status)
        on_exit(exit_status)

    reporting.mpiboot_report = report  # type: ignore[attr-defined]
    nanny._on_worker_exit_sync = reporting


def last_ended_for_memory(nanny: Nanny) -> int | None:
    """Return the process id of the last worker that a nanny ended near its memory limit; None if there is no limit."""
    return getattr(nanny.memory_manager, "_last_terminated_pid", None)


def worker_memory_limit(nanny: Nanny) -> int | None:
    """Return the memory limit of a nanny's worker in bytes; None if there is no limit."""
    limit: int | None = nanny.memory_manager.memory_limit
    return limit


def scheduler_identity(client: Client, timeout_s: float) -> dict[str, Any]:
    """Ask a client's scheduler who it is, and how many workers it has.

    Parameters
    ----------
    client : distributed.Client
        A connected client.
    timeout_s : float, seconds
        How long to wait for the answer.

    Returns
    -------
    dict
        `id`, `address`, `n_workers`, and more; no worker is described, which would take 2 KB each.

    Raises
    ------
    OSError, TimeoutError, asyncio.TimeoutError, RuntimeError
        The scheduler did not answer, or the client is closed.
    """
    identity: dict[str, Any] = client.sync(client.scheduler.identity, n_workers=0, callback_timeout=timeout_s)
    return identity


async def ask_server(
    address: str,
    operations: Mapping[str, Mapping[str, Any]],
    *,
    timeout_s: float,
    connection_args: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Call operations of a scheduler, worker or nanny, without a client.

    Parameters
    ----------
    address : str
        Such as `tls://10.0.0.1:41234`.
    operations : mapping of str to mapping
        Arguments, by the names of the server's handlers, such as `identity` and `versions`.
    timeout_s : float, seconds
        How long connecting may take.
    connection_args : mapping
        The result of `Security.get_connection_args`.

    Returns
    -------
    list of dict
        One answer per operation, unchecked: another program may listen at the address.
    """
    comm = await connect(address, timeout=timeout_s, **connection_args)
    try:
        answers = []
        for operation, arguments in operations.items():
            await comm.write({"op": operation, "reply": True, **arguments})
            answers.append(await comm.read())
        return answers
    finally:
        comm.abort()


class RemoteCluster(Cluster):  # type: ignore[misc]
    """A `distributed.deploy.Cluster` whose scheduler and workers run somewhere else.

    A subclass overrides `on_close` and `more_logs` for what else belongs to the cluster. Dask's own messages are not
    printed.

    Parameters
    ----------
    asynchronous, loop, name
        As for every Dask cluster.
    """

    status: Any  # of distributed.core.Status

    def __init__(self, *, asynchronous: bool, loop: Any, name: str | None) -> None:
        super().__init__(asynchronous=asynchronous, loop=loop, name=name, quiet=True)

    def log(self, line: str) -> None:
        """Add a line to the cluster's logs, unless it is the last one already."""
        if not self._cluster_manager_logs or self._cluster_manager_logs[-1][1] != line:
            self._log(line)

    def connect_now(self, address: str, security: Security | None) -> None:
        """Start the event loop, and run `connect` in it."""
        self._loop_runner.start()
        self.sync(self.connect, address, security)

    async def connect(self, address: str, security: Security | None) -> None:
        """Connect to the scheduler, and show its workers from then on."""
        connection_args = security.get_connection_args("client") if security else {}
        self.scheduler_comm = rpc(address, connection_args=connection_args)
        await super()._start()

    async def on_close(self) -> None:
        """Close what else belongs to the cluster, such as its job. Called once."""

    async def more_logs(self) -> dict[str, str]:
        """Return further logs by name."""
        return {}

    async def _close(self) -> None:
        if self.status == Status.closed:
            return
        with contextlib.suppress(OSError):  # the scheduler may be gone
            await super()._close()
        self.status = Status.closed
        await self.on_close()

    async def _get_logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Logs:
        logs = await super()._get_logs(cluster=cluster, scheduler=scheduler, workers=workers)
        if cluster:
            logs.update({name: Log(text) for name, text in (await self.more_logs()).items()})
        return logs
