"""One test per private name of distributed and tornado: a new release that lacks one fails the test of that name."""

import asyncio
import contextlib
import inspect
import logging
import time

import pytest
from distributed import Client, LocalCluster, Nanny, Scheduler, Security, Worker
from distributed.comm.tcp import TLSListener
from distributed.core import Server
from distributed.deploy.cluster import Cluster
from distributed.node import ServerNode
from tornado.iostream import IOStream, SSLIOStream
from tornado.netutil import bind_sockets
from tornado.routing import Router
from tornado.tcpserver import TCPServer
from tornado.web import Application, RequestHandler

from mpiboot import distributed_internals as internals
from mpiboot.boot.certificates import make_job_secrets
from mpiboot.protocol.secrets import client_security_arguments


@pytest.fixture(scope="module")
def cluster():
    """A real cluster: a scheduler in this process, and a nanny with its worker process."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    with Client(cluster) as client:
        yield client


def nanny_of(cluster):
    return next(iter(cluster.workers.values()))


def worker_of(cluster):
    return next(iter(cluster.scheduler.workers.values()))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ServerNode.start_http_server", ["self", "routes", "dashboard_address"]),
        ("TLSListener.start", ["self"]),
        ("TLSListener.on_connection", ["self", "comm"]),
        ("TCPServer._handle_connection", ["self", "connection", "address"]),
        ("Nanny._on_worker_exit_sync", ["self", "exitcode"]),
        ("Scheduler.check_idle", ["self"]),
        ("Scheduler.identity", ["self", "n_workers"]),
        ("Cluster._start", ["self"]),
        ("Cluster._close", ["self"]),
        ("Cluster._log", ["self", "log"]),
        ("Cluster._get_logs", ["self", "cluster", "scheduler", "workers"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_method(name, parameters):
    owner, method = name.split(".")
    classes = {"ServerNode": ServerNode, "Nanny": Nanny, "Scheduler": Scheduler, "Cluster": Cluster}
    classes |= {"TLSListener": TLSListener, "TCPServer": TCPServer}
    found = list(inspect.signature(getattr(classes[owner], method)).parameters)
    assert found[: len(parameters)] == parameters


@pytest.mark.parametrize(
    ("name", "holds"),
    {
        "Scheduler.http_server.request_callback": lambda c: isinstance(
            c.scheduler.http_server.request_callback, Router
        ),
        "Scheduler.services['dashboard'].port": lambda c: c.scheduler.services["dashboard"].port > 0,
        "Scheduler.periodic_callbacks['worker-ttl']": lambda c: (
            c.scheduler.periodic_callbacks["worker-ttl"].callback_time > 0
        ),
        "Scheduler.clients['fire-and-forget']": lambda c: (
            internals.FIRE_AND_FORGET_CLIENT in c.scheduler.clients
        ),
        "WorkerState.services['dashboard']": lambda c: worker_of(c).services["dashboard"] > 0,
        "WorkerState.host": lambda c: worker_of(c).host == "127.0.0.1",
        "Nanny.memory_manager._last_terminated_pid": lambda c: isinstance(
            nanny_of(c).memory_manager._last_terminated_pid, int
        ),
        "Nanny.memory_manager.memory_limit": lambda c: nanny_of(c).memory_manager.memory_limit > 0,
        "Nanny.status.name": lambda c: nanny_of(c).status.name == "running",
        "Cluster._cluster_manager_logs": lambda c: isinstance(c._cluster_manager_logs, list),
        "Cluster._loop_runner": lambda c: callable(c._loop_runner.start),
        "Cluster.scheduler_comm": lambda c: callable(c.scheduler_comm.close_rpc),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_attribute(cluster, name, holds):
    assert holds(cluster), name


def test_the_http_server_of_a_scheduler_is_seen_before_it_serves(monkeypatch):
    monkeypatch.setattr(ServerNode, "start_http_server", ServerNode.start_http_server)
    seen = []
    internals.after_http_start(seen.append)
    internals.after_http_start(lambda server: pytest.fail("the second is one too many"))

    async def start():
        async with Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler:
            assert seen == [scheduler]
            other = Router()
            internals.replace_http_application(scheduler, other)
            assert internals.http_application(scheduler) is other

    asyncio.run(start())


@pytest.fixture
def encryption(tmp_path):
    """A job's TLS files as Dask's security."""
    tmp_path.chmod(0o700)
    make_job_secrets(tmp_path, valid_for_s=600)
    return Security(
        **client_security_arguments(tmp_path),
        tls_scheduler_cert=str(tmp_path / "tls/scheduler.pem"),
        tls_scheduler_key=str(tmp_path / "tls/scheduler-key.pem"),
    )


def test_a_tls_listener_is_seen_before_it_accepts_and_each_connection_after_its_handshake(
    encryption, monkeypatch
):
    """`TLSListener.start`, `.tcp_server`, `.on_connection`, and `TLS.stream`; a failed handshake is told in the log."""
    monkeypatch.setattr(TLSListener, "start", TLSListener.start)
    monkeypatch.setattr(logging.getLogger(internals.TLS_LOGGER), "filters", [])
    seen, streams, records = [], [], []

    def act(listener, tcp_server):
        seen.append(tcp_server)
        internals.after_handshake(listener, streams.append)

    internals.after_tls_start(act)
    internals.after_tls_start(lambda *args: pytest.fail("the second is one too many"))
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger(internals.TLS_LOGGER).addHandler(handler)

    async def start():
        arguments = encryption.get_connection_args("client")
        async with Server({"ping": lambda: "pong"}) as server:
            await server.listen("tls://127.0.0.1:0", **encryption.get_listen_args("scheduler"))
            assert [type(tcp_server) for tcp_server in seen] == [TCPServer]
            stranger = await asyncio.open_connection("127.0.0.1", server.port)
            stranger[1].write(b"rubbish\n" * 100)
            with contextlib.suppress(ConnectionResetError):
                await stranger[0].read()
            stranger[1].close()
            assert streams == []
            assert (
                await internals.ask_server(
                    server.address, {"ping": {}}, timeout_s=10, connection_args=arguments
                )
            ) == ["pong"]
            assert [type(stream) for stream in streams] == [SSLIOStream]

    try:
        asyncio.run(start())
    finally:
        logging.getLogger(internals.TLS_LOGGER).removeHandler(handler)
    assert [internals.is_handshake_failure(record) for record in records] == [True]


def test_the_connections_to_a_server_are_accepted_by_another_function():
    """`TCPServer._sockets`, `._handlers`, `._handle_connection`."""
    served = []

    class Greeter(TCPServer):
        async def handle_stream(self, stream, address):
            served.append((type(stream), address))
            await stream.write(b"hello\n")
            stream.close()

    async def start():
        server = Greeter()
        server.add_sockets(bind_sockets(0, "127.0.0.1"))
        accepted = []

        def accept(listening, events):
            accepted.append(listening.accept())
            internals.serve_connection(server, *accepted[-1])

        [listening] = internals.accept_connections(server, accept)
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        assert await reader.read() == b"hello\n"
        assert served == [(IOStream, address) for _, address in accepted] != []
        writer.close()
        server.stop()
        assert listening.fileno() == -1

    asyncio.run(start())


def test_the_stream_of_a_request():
    """`HTTPServerRequest.connection.stream`."""
    streams = []

    class Page(RequestHandler):
        def get(self):
            streams.append(internals.request_stream(self.request))

    async def start():
        server = Application([("/", Page)]).listen(0, "127.0.0.1")
        [listening] = server._sockets.values()
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()
        server.stop()

    asyncio.run(start())
    assert [type(stream) for stream in streams] == [IOStream]


def test_dashboards(cluster):
    worker = worker_of(cluster)
    port = worker.services["dashboard"]
    assert internals.scheduler_dashboard_port(cluster.scheduler) == cluster.scheduler.http_server.port
    assert internals.is_worker_dashboard(cluster.scheduler, worker.host, port)
    assert not internals.is_worker_dashboard(cluster.scheduler, worker.host, port + 1)
    assert not internals.is_worker_dashboard(cluster.scheduler, "127.0.0.2", port)


def test_hung_workers_are_looked_for_soon(cluster):
    internals.watch_for_hung_workers(cluster.scheduler, 5.0)
    assert cluster.scheduler.periodic_callbacks["worker-ttl"].callback_time == 5000
    internals.watch_for_hung_workers(cluster.scheduler, 50.0)
    assert cluster.scheduler.periodic_callbacks["worker-ttl"].callback_time == 5000


def test_a_worker_that_falls_silent_is_announced_as_hung():
    async def hang():
        async with (
            Scheduler(host="127.0.0.1", port=0, dashboard_address=":0", worker_ttl="60s") as scheduler,
            Worker(scheduler.address, host="127.0.0.1", dashboard_address=":0") as worker,
        ):
            scheduler.workers[worker.address].last_seen -= 100
            await scheduler.check_worker_ttl()
            events = [message for _, message in scheduler.get_events("scheduler")]
            return [
                found for found in (internals.hung_workers("scheduler", each) for each in events) if found[0]
            ], [([worker.address], 60.0)]

    found, expected = asyncio.run(hang())
    assert found == expected
    assert internals.hung_workers("all", {"action": "worker-ttl-timed-out"}) == ([], 0.0)


def test_work_and_clients(cluster, client):
    assert internals.user_clients(cluster.scheduler) == [client.id]
    future = client.submit(lambda: 1)
    assert future.result() == 1
    with Client(cluster.scheduler_address, set_as_default=False) as second:
        assert sorted(internals.user_clients(cluster.scheduler)) == sorted([client.id, second.id])


def test_a_scheduler_with_a_task_has_work_and_then_none(cluster, client):
    async def has_work():
        return internals.has_work(cluster.scheduler)

    future = client.submit(time.sleep, 60)
    while not worker_of(cluster).processing:
        pass
    assert cluster.sync(has_work)
    future.cancel()
    while cluster.sync(has_work):
        pass


def test_the_exit_of_a_worker_is_reported():
    reported = []

    class OneNanny:
        def _on_worker_exit_sync(self, exit_status):
            reported.append(("nanny", exit_status))

    nanny = OneNanny()
    internals.on_worker_exit(nanny, lambda exit_status: reported.append(("report", exit_status)))
    internals.on_worker_exit(nanny, lambda exit_status: pytest.fail("the second is one too many"))
    nanny._on_worker_exit_sync(-9)
    assert reported == [("report", -9), ("nanny", -9)]


def test_a_nanny_s_memory(cluster):
    nanny = nanny_of(cluster)
    assert internals.last_ended_for_memory(nanny) == -1
    assert internals.worker_memory_limit(nanny) == nanny.memory_manager.memory_limit


def test_a_client_s_scheduler(cluster, client):
    identity = internals.scheduler_identity(client, 10.0)
    assert (identity["id"], identity["n_workers"], identity["workers"]) == (cluster.scheduler.id, 1, {})


def test_a_scheduler_that_is_asked_without_a_client(cluster):
    answers = asyncio.run(
        internals.ask_server(
            cluster.scheduler_address,
            {"identity": {"n_workers": 0}, "versions": {}},
            timeout_s=10.0,
            connection_args={},
        )
    )
    assert (answers[0]["id"], answers[0]["n_workers"]) == (cluster.scheduler.id, 1)
    assert dict(answers[1]["host"])["python"]
