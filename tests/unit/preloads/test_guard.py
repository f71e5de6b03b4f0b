"""Nobody but the job's owner reaches a scheduler or worker: real servers, with the preload as boot configures it."""

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import dask
import pytest
import tornado.httpclient
import tornado.websocket
from distributed import Client, Scheduler, Security, Worker
from distributed.comm.tcp import TLSListener
from distributed.node import ServerNode
from holder import MODES, hold
from routes import all_routes

from mpiboot.boot.certificates import make_job_secrets
from mpiboot.errors import SecurityError
from mpiboot.preloads import guard, pending
from mpiboot.protocol import secrets as security
from mpiboot.protocol.variables import JOB_DIRECTORY_VARIABLE

LOOPBACK = {"host": "127.0.0.1", "protocol": "tls"}
PROBE = """
import urllib.error, urllib.request
from tornado.ioloop import IOLoop

def ask(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status
    except urllib.error.HTTPError as error:
        with error:
            return error.code

async def dask_setup(server):
    url = f"http://127.0.0.1:{server.http_server.port}/health"
    server.first_status = await IOLoop.current().run_in_executor(None, ask, url)
"""


def make_job(parent, name):
    job = parent / name
    job.mkdir(mode=0o700)
    make_job_secrets(job, valid_for_s=600)
    return job


def read_by_dask(environment):
    """Give variables as Dask reads them; one key each, for `dask.config.set` replaces whole branches."""
    return {
        name.removeprefix("DASK_").lower().replace("__", "."): dask.config.interpret_value(value)
        for name, value in environment.items()
    }


def dask_settings(job):
    """What boot puts into the ranks' environment."""
    return {
        **read_by_dask(security.dask_tls_environment(job)),
        "distributed.scheduler.preload": [security.GUARD_PRELOAD],
        "distributed.worker.preload": [security.GUARD_PRELOAD],
    }


@pytest.fixture
def preload(monkeypatch):
    """Let the preload be imported as in a new process, and undo what it does to distributed."""
    monkeypatch.delitem(sys.modules, security.GUARD_PRELOAD, raising=False)
    start = ServerNode.start_http_server
    monkeypatch.setattr(ServerNode, "start_http_server", getattr(start, "__wrapped__", start))
    start = TLSListener.start
    monkeypatch.setattr(TLSListener, "start", getattr(start, "__wrapped__", start))
    yield monkeypatch
    sys.modules.pop(security.GUARD_PRELOAD, None)


class Cluster:
    """A scheduler and a worker in a thread of their own, and a browser of few words."""

    def __init__(self, job):
        self.job, self.token = job, security.read_token(job)
        self.cookie = "=".join(security.dashboard_cookie(job.name, self.token))
        self.bearer = {"Authorization": f"Bearer {self.token}"}
        self.loop = asyncio.new_event_loop()
        self.ends = contextlib.AsyncExitStack()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    async def open(self):
        self.scheduler = await self.ends.enter_async_context(
            Scheduler(port=0, dashboard=True, dashboard_address="127.0.0.1:0", **LOOPBACK)
        )
        self.worker = await self.ends.enter_async_context(
            Worker(
                self.scheduler.address,
                nthreads=1,
                dashboard=True,
                dashboard_address="127.0.0.1:0",
                **LOOPBACK,
            )
        )

    def close(self):
        self.run(self.ends.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def base(self, role):
        return f"http://127.0.0.1:{getattr(self, role).http_server.port}"

    def ask(self, role, path, headers=None, method="GET"):
        """Give status, headers and body; redirects are not followed."""
        opener = urllib.request.build_opener(NoRedirect())
        request = urllib.request.Request(self.base(role) + path, headers=headers or {}, method=method)
        try:
            with opener.open(request, timeout=30) as response:
                return response.status, response.headers, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read().decode()

    def status(self, *args, **kwargs):
        return self.ask(*args, **kwargs)[0]

    def websocket(self, path, headers=None, **kwargs):
        async def speak():
            request = tornado.httpclient.HTTPRequest(
                self.base("scheduler").replace("http", "ws") + path, headers=headers
            )
            try:
                socket = await tornado.websocket.websocket_connect(request, **kwargs)
            except tornado.httpclient.HTTPClientError as error:
                return error.code
            message = await asyncio.wait_for(socket.read_message(), 20) if kwargs else None
            socket.close()
            return message or 101

        return self.run(speak())


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):
        return None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    job = make_job(tmp_path_factory.mktemp("jobs"), "slurm-a-7")
    with pytest.MonkeyPatch.context() as monkeypatch, dask.config.set(dask_settings(job)):
        monkeypatch.setenv(JOB_DIRECTORY_VARIABLE, str(job))
        monkeypatch.delitem(sys.modules, security.GUARD_PRELOAD, raising=False)
        monkeypatch.setattr(ServerNode, "start_http_server", ServerNode.start_http_server)
        monkeypatch.setattr(TLSListener, "start", TLSListener.start)
        cluster = Cluster(job)
        try:
            cluster.run(cluster.open())
            yield cluster
        finally:
            cluster.close()
            sys.modules.pop(security.GUARD_PRELOAD, None)


# ---- every route ------------------------------------------------------------------------------------------


KNOWN_SCHEDULER = {
    "/metrics", "/health", "/sitemap.json", "/eventstream", "/statics/x", "/static/x", "/status", "/status/ws",
    "/status/autoload.js", "/info/main/workers.html", "/json/counts.json", "/json/identity.json",
    "/individual-task-stream", "/individual-task-stream/ws", "/proxy/1/x/x", "/tasks", "/profile",
}  # fmt: skip
KNOWN_WORKER = {"/metrics", "/health", "/sitemap.json", "/statics/x", "/status", "/status/ws", "/counters"}


@pytest.mark.parametrize(
    ("role", "known", "at_least"), [("scheduler", KNOWN_SCHEDULER, 150), ("worker", KNOWN_WORKER, 25)]
)
def test_every_route_answers_403_without_the_token(cluster, role, known, at_least):
    paths = all_routes(getattr(cluster, role))
    assert known <= set(paths)
    assert len(paths) >= at_least
    wrong = {
        "Authorization": f"Bearer {cluster.token[:-1]}",
        "Cookie": cluster.cookie[:-1] + ("0" if cluster.cookie[-1] != "0" else "1"),
    }
    for path in paths:
        assert (path, *cluster.ask(role, path)[::2]) == (path, 403, guard._REFUSAL[role == "scheduler"])
        assert (path, cluster.status(role, path, wrong)) == (path, 403)
        assert (path, cluster.status(role, path, method="POST")) == (path, 403)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT"])
def test_every_method_answers_403(cluster, method):
    assert cluster.status("scheduler", "/status", method=method) == 403
    assert cluster.status("scheduler", f"/status?token={cluster.token[1:]}", method=method) == 403


@pytest.mark.parametrize(
    "path", ["/status", "/metrics", "/health", "/info/main/workers.html", "/json/counts.json"]
)
def test_the_owner_sees_the_scheduler_s_pages(cluster, path):
    assert cluster.status("scheduler", path, cluster.bearer) == 200
    assert cluster.status("scheduler", path, {"Cookie": f"theme=dark; {cluster.cookie}"}) == 200


@pytest.mark.parametrize("path", ["/status", "/metrics", "/health"])
def test_a_worker_takes_the_bearer_alone(cluster, path):
    assert cluster.status("worker", path, {"Authorization": f"bearer  {cluster.token}"}) == 200
    assert cluster.status("worker", path, {"Cookie": cluster.cookie}) == 403
    assert cluster.status("worker", f"{path}?token={cluster.token}") == 403
    assert cluster.status("worker", f"{path}?token={cluster.token}", cluster.bearer) == 403


# ---- the token, once --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/status?token=T", "./status"),
        ("/?token=T", "./"),
        ("/info/main/workers.html?token=T", "./workers.html"),
        ("/status?a=%2F%20&token=T&b=;x&a=", "./status?a=%2F%20&b=;x&a="),
        ("/status?%74oken=old&token=T", "./status"),
        ("//evil.example/?token=T", "./"),
        ("//evil.example?token=T", "./evil.example"),
        ("/node/n1.cluster/40001/status?token=T", "./status"),
    ],
)
def test_a_token_is_exchanged_for_a_cookie(cluster, path, location):
    status, headers, body = cluster.ask("scheduler", path.replace("=T", f"={cluster.token}"))
    assert (status, headers["Location"], body) == (302, location, "")
    assert headers.get_all("Set-Cookie") == [f"{cluster.cookie}; Path=/; HttpOnly; SameSite=Lax"]
    assert headers["Cache-Control"] == "no-store"
    assert cluster.token not in str(headers)


HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/individual-plots.json", '{"Individual '),
        ("/json/counts.json", '{"'),
        ("/health", "ok"),
        ("/metrics", "# "),
        ("/status/autoload.js?bokeh-autoload-element=1", "'use strict'"),
        ("/node/n1.cluster/40001/health", "ok"),
        ("/proxy/{worker}/127.0.0.1/health", "ok"),
    ],
)
def test_a_program_gets_data_with_the_token_in_the_query(cluster, path, body):
    """As dask-labextension asks: without cookies, and without a header that says what it accepts."""
    path = path.format(worker=cluster.worker.http_server.port)
    if path.startswith("/proxy"):
        pytest.importorskip("jupyter_server_proxy")
    query = f"{'&' if '?' in path else '?'}token={cluster.token}"
    status, headers, text = cluster.ask("scheduler", path + query)
    assert (status, headers["Set-Cookie"], text[: len(body)]) == (200, None, body)
    assert cluster.token not in f"{headers}{text}"
    assert cluster.status("scheduler", path + query, method="HEAD") in (200, 405)
    assert cluster.status("scheduler", path + query[:-1]) == 403
    assert cluster.status("scheduler", path + query, HTML) == 302  # a browser keeps the cookie


def test_a_form_may_hold_the_token_where_there_is_no_page(cluster):
    path = f"/api/v1/retire_workers?token={cluster.token}"
    assert cluster.status("scheduler", path, method="POST") == 404  # no such route
    assert cluster.status("scheduler", path[:-1], method="POST") == 403


@pytest.mark.parametrize("path", ["/eventstream", "/status/ws", "/node/n1/1/status/ws"])
def test_a_websocket_takes_the_token_in_the_query(cluster, path):
    assert cluster.websocket(f"{path}?token={cluster.token}") == 101
    assert cluster.websocket(f"{path}?token={cluster.token}", {"Origin": "http://lab.example"}) == 101
    assert cluster.websocket(f"{path}?token={cluster.token[:-1]}") == 403


def test_a_wrong_token_is_refused_even_with_the_cookie(cluster):
    assert cluster.status("scheduler", "/status?token=wrong", {"Cookie": cluster.cookie}) == 403


def test_a_token_is_not_taken_from_a_form(cluster):
    assert cluster.status("scheduler", f"/status?token={cluster.token}", method="POST") == 403


def test_another_job_s_cookie_and_token_are_refused(cluster, tmp_path):
    other = security.read_token(make_job(tmp_path, "slurm-a-8"))
    for name in (cluster.job.name, "slurm-a-8"):
        assert (
            cluster.status(
                "scheduler", "/status", {"Cookie": "=".join(security.dashboard_cookie(name, other))}
            )
            == 403
        )
    assert cluster.status("scheduler", f"/status?token={other}") == 403
    assert cluster.status("scheduler", "/status", {"Authorization": f"Bearer {other}"}) == 403


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Basic {token}", "{token}", "Bearer {token} x", "Bearer \xff"]
)
def test_other_authorizations_are_refused(cluster, value):
    headers = {"Authorization": value.format(token=cluster.token)}
    assert cluster.status("scheduler", "/metrics", headers) == 403


@pytest.mark.parametrize(
    "framing", ["Content-Length: 99000000", "Content-Length: 999000000", "Transfer-Encoding: chunked", "X: y"]
)
@pytest.mark.parametrize("role", ["scheduler", "worker"])
def test_a_refused_request_is_answered_after_its_head_and_its_connection_closed(cluster, role, framing):
    port = getattr(cluster, role).http_server.port
    with socket.create_connection(("127.0.0.1", port), 10) as stranger, stranger.makefile("rb") as answer:
        stranger.sendall(f"POST /status HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())
        assert answer.readline() == b"HTTP/1.1 403 Forbidden\r\n"
        head, _, rest = answer.read().partition(b"\r\n\r\n")  # until the server has closed it
        assert b"Connection: close" in head
        assert rest.startswith(guard._REFUSAL[role == "scheduler"].encode())


@pytest.mark.parametrize("mode", ["body", "chunked"])
def test_nobody_reads_the_body_of_a_refused_request(cluster, mode):
    port = cluster.scheduler.http_server.port
    figures = asyncio.run(hold("127.0.0.1", port, mode, connections=3, seconds=20))
    assert figures.closed == 3
    assert figures.held_s[2] < 5
    assert figures.sent_bytes < 3 * 20e6  # what the kernel's buffers take


# ---- those who hold connections --------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(pending, "PENDING_S", 0.75)


@pytest.mark.parametrize("role", ["scheduler", "worker"])
@pytest.mark.parametrize("kind", ["comm", "http"])
def test_no_stranger_holds_a_connection_for_long(cluster, soon, role, kind):
    server = getattr(cluster, role)
    port = server.http_server.port if kind == "http" else int(server.address.rpartition(":")[2])

    async def hold_all():
        return await asyncio.gather(
            *(hold("127.0.0.1", port, mode, connections=3, seconds=15) for mode in MODES)
        )

    for figures in asyncio.run(hold_all()):
        assert (figures.mode, figures.opened, figures.closed) == (figures.mode, 3, 3)
        assert figures.held_s[2] < 4, figures


@pytest.mark.parametrize("role", ["scheduler", "worker"])
def test_the_owner_s_idle_connection_stays(cluster, soon, role):
    async def ask_twice():
        reader, writer = await asyncio.open_connection("127.0.0.1", getattr(cluster, role).http_server.port)
        answers = []
        for pause_s in (3 * pending.PENDING_S, 0):
            request = f"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {cluster.token}\r\n\r\n"
            writer.write(request.encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            await reader.readexactly(int(re.search(rb"Content-Length: (\d+)", head)[1]))
            answers.append(head.split()[1])
            await asyncio.sleep(pause_s)
        writer.close()
        return answers

    assert asyncio.run(ask_twice()) == [b"200", b"200"]


def test_the_owner_s_websocket_and_client_stay(cluster, soon):
    async def work():
        request = tornado.httpclient.HTTPRequest(
            cluster.base("scheduler").replace("http", "ws") + "/eventstream",
            headers={"Cookie": cluster.cookie},
        )
        websocket = await tornado.websocket.websocket_connect(request)
        arguments = security.client_security_arguments(cluster.job)
        async with Client(
            cluster.scheduler.address,
            security=Security(**arguments),
            asynchronous=True,
            set_as_default=False,
        ) as client:
            await asyncio.sleep(3 * pending.PENDING_S)
            done = await client.submit(sum, [1, 2], pure=False)
        told = await asyncio.wait_for(websocket.read_message(), 10)
        websocket.close()
        return done, told is not None

    assert cluster.run(work()) == (3, True)


# ---- websockets and pages from elsewhere ------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/eventstream", "/status/ws"])
def test_websockets(cluster, path):
    own, elsewhere = cluster.base("scheduler"), cluster.base("worker")
    assert cluster.websocket(path) == 403
    assert cluster.websocket(path, {"Cookie": cluster.cookie[:-1]}) == 403
    assert cluster.websocket(path, {"Cookie": cluster.cookie}) == 101
    assert cluster.websocket(path, {"Cookie": cluster.cookie, "Origin": own}) == 101
    for origin in (elsewhere, "http://evil.example", "null"):
        assert cluster.websocket(path, {"Cookie": cluster.cookie, "Origin": origin}) == 403


@pytest.mark.parametrize("path", ["/eventstream", "/status/ws"])
def test_websockets_of_allowed_origins(cluster, monkeypatch, path):
    """Open OnDemand and hubs send the browser's origin, and a host of their own."""
    allowed = "https://ondemand.example.org"
    monkeypatch.setattr(cluster.scheduler.http_server.request_callback, "origins", frozenset([allowed]))
    headers = {"Cookie": cluster.cookie, "Host": "node1:40001"}
    assert cluster.websocket(path, {**headers, "Origin": allowed}) == 101
    assert cluster.websocket(path, {**headers, "Origin": "HTTPS://OnDemand.example.org"}) == 101
    for origin in ("http://ondemand.example.org", f"{allowed}.evil.example", f"{allowed}:8443"):
        assert cluster.websocket(path, {**headers, "Origin": origin}) == 403
    assert cluster.websocket(path, {"Origin": allowed}) == 403  # no cookie


def test_bokeh_s_websocket_works_through_the_guard(cluster):
    page = cluster.ask("scheduler", "/individual-task-stream", {"Cookie": cluster.cookie})[2]
    session = re.search(r'"token":"([^"]+)"', page)[1]
    message = cluster.websocket(
        "/individual-task-stream/ws", {"Cookie": cluster.cookie}, subprotocols=["bokeh", session]
    )
    assert json.loads(message)["msgtype"] == "ACK"


def test_a_form_from_elsewhere_is_refused(cluster):
    headers = {"Cookie": cluster.cookie, "Origin": cluster.base("worker")}
    assert cluster.status("scheduler", "/api/v1/retire_workers", headers, method="POST") == 403
    headers["Origin"] = cluster.base("scheduler")
    assert (
        cluster.status("scheduler", "/api/v1/retire_workers", headers, method="POST") == 404
    )  # no such route


# ---- the scheduler's proxy to the workers' pages ----------------------------------------------------------


def test_the_proxy_leads_to_workers_alone(cluster):
    pytest.importorskip("jupyter_server_proxy")
    port = cluster.worker.http_server.port
    assert cluster.status("scheduler", f"/proxy/{port}/127.0.0.1/metrics") == 403
    assert cluster.ask("scheduler", f"/proxy/{port}/127.0.0.1/metrics", {"Cookie": cluster.cookie})[0] == 200
    for elsewhere in (f"{cluster.scheduler.http_server.port}/127.0.0.1", f"{port}/localhost", "22/127.0.0.1"):
        assert cluster.status("scheduler", f"/proxy/{elsewhere}/metrics", {"Cookie": cluster.cookie}) == 403
        assert cluster.websocket(f"/proxy/{elsewhere}/x", {"Cookie": cluster.cookie}) == 403


# ---- logs -------------------------------------------------------------------------------------------------


def test_no_token_in_any_log(cluster):
    records = []

    class Handler(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    names = [
        "tornado.access",
        "tornado.general",
        "tornado.application",
        "distributed",
        "bokeh",
        "asyncio",
        "mpiboot",
    ]
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    handler = Handler(logging.DEBUG)
    try:
        for logger in loggers:
            logger.setLevel(logging.DEBUG)
            logger.addHandler(handler)
        for path in (
            "/status?token=T",
            "/json/counts.json?token=T&a=1",
            "/info/main/workers.html?token=T&token=x",
            "/nowhere?x=1&%74oken=T",
        ):
            for role in ("scheduler", "worker"):
                for method in ("GET", "POST"):
                    for headers in ({}, cluster.bearer, {"Cookie": cluster.cookie}):
                        cluster.status(role, path.replace("T", cluster.token), headers, method=method)
        cluster.status("scheduler", "/health", cluster.bearer)
        for _ in range(100):  # tornado logs once it has answered
            if any("GET /health" in record for record in records):
                break
            time.sleep(0.05)
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
    logged = "\n".join(records)
    assert "200 GET /health" in logged  # the access log was on
    assert "200 GET /json/counts.json?a=1" in logged
    assert "refused POST /status from 127.0.0.1" in logged
    assert cluster.token not in logged
    assert cluster.cookie.partition("=")[2] not in logged


# ---- TLS --------------------------------------------------------------------------------------------------


def connect(cluster, address, **kwargs):
    async def compute():
        async with Client(address, asynchronous=True, timeout=1, set_as_default=False, **kwargs) as client:
            return await client.submit(sum, [1, 2])

    return cluster.run(compute())


def test_the_owner_s_client_connects(cluster):
    arguments = security.client_security_arguments(cluster.job)
    assert connect(cluster, cluster.scheduler.address, security=Security(**arguments)) == 3
    assert connect(cluster, cluster.scheduler.address) == 3  # a bare Client() with the job's environment


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("target", ["scheduler", "worker"])
def test_nobody_else_s_client_connects(cluster, tmp_path, target):
    address = getattr(cluster, target).address
    theirs = security.client_security_arguments(make_job(tmp_path, "theirs"))
    trusting = {**theirs, "tls_ca_file": security.client_security_arguments(cluster.job)["tls_ca_file"]}
    for strangers in (theirs, trusting):
        with pytest.raises(OSError, match=r"SSLError|TLS certificate does not match"):
            connect(cluster, address, security=Security(**strangers))
    with pytest.raises(OSError, match=r"Timed out|[Cc]onnection"):
        connect(cluster, address.replace("tls://", "tcp://"), security=Security(require_encryption=False))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_nobody_else_s_worker_registers(cluster, tmp_path):
    theirs = make_job(tmp_path, "theirs") / "tls"
    stranger = Security(
        require_encryption=True,
        tls_ca_file=str(cluster.job / "tls/ca.pem"),
        tls_worker_cert=str(theirs / "worker.pem"),
        tls_worker_key=str(theirs / "worker-key.pem"),
    )

    async def register():
        with dask.config.set({"distributed.worker.preload": []}):
            async with Worker(cluster.scheduler.address, security=stranger, death_timeout=1, **LOOPBACK):
                pass

    with pytest.raises(Exception, match=r"Worker start timed out after 1s\."):
        cluster.run(register())
    assert list(cluster.scheduler.workers) == [cluster.worker.address]


# ---- the preload ------------------------------------------------------------------------------------------


def test_no_request_comes_before_the_guard(tmp_path, preload):
    """The first moment at which a new server lets others run is a preload's `dask_setup` that waits."""
    job = make_job(tmp_path, "job")
    probe = tmp_path / "probe_before_the_guard.py"
    probe.write_text(PROBE)
    preloads = [str(probe), security.GUARD_PRELOAD]  # even when it is not named first
    preload.setenv(JOB_DIRECTORY_VARIABLE, str(job))

    async def start():
        async with (
            Scheduler(port=0, dashboard_address="127.0.0.1:0", preload=preloads, **LOOPBACK) as scheduler,
            Worker(
                scheduler.address, nthreads=1, preload=preloads, local_directory=str(tmp_path), **LOOPBACK
            ) as worker,
        ):
            return scheduler.first_status, worker.first_status

    with dask.config.set(dask_settings(job)):
        assert asyncio.run(start()) == (403, 403)
    preload.undo()


@pytest.mark.parametrize("node", [Scheduler, Worker])
@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (
            lambda job, patch: (job / "tls/client.pem").unlink(),
            "refuses to start:\n.*client.pem: there is no such file",
        ),
        (lambda job, patch: (job / "tls/token").chmod(0o644), "refuses to start:\n.*token cannot be trusted"),
        (
            lambda job, patch: patch.delenv(JOB_DIRECTORY_VARIABLE),
            "MPIBOOT_JOB_DIRECTORY is not set",
        ),
    ],
    ids=["missing", "open", "unknown"],
)
def test_a_rank_without_its_files_does_not_start(tmp_path, preload, node, break_it, says):
    job = make_job(tmp_path, "job")
    preload.setenv(JOB_DIRECTORY_VARIABLE, str(job))

    break_it(job, preload)

    async def start():
        node(*["tls://127.0.0.1:1"] * (node is Worker), dashboard_address="127.0.0.1:0", **LOOPBACK)

    with dask.config.set(dask_settings(job)), pytest.raises(SecurityError, match=f"(?s){says}"):
        asyncio.run(start())


@pytest.mark.parametrize(
    "setting",
    [{"distributed.comm.require-encryption": False}, {"distributed.comm.tls.ca-file": "/other/ca.pem"}],
)
def test_a_rank_does_not_start_unencrypted(tmp_path, preload, setting):
    job = make_job(tmp_path, "job")
    with (
        dask.config.set(dask_settings(job)),
        dask.config.set(setting),
        pytest.raises(SecurityError) as refusal,
    ):
        guard.arm(job)
    key, value = next(iter(setting.items()))
    assert f"{key} is {value!r}" in str(refusal.value)


def test_twice_is_once(tmp_path, preload):
    job = make_job(tmp_path, "job")
    with dask.config.set(dask_settings(job)):
        guard.arm(job)
        armed = ServerNode.start_http_server, TLSListener.start
        guard.arm(job)
    assert (ServerNode.start_http_server, TLSListener.start) == armed
    filters = logging.getLogger("distributed.comm.tcp").filters
    assert [type(known) for known in filters].count(pending.FewHandshakeFailures) == 1


def test_the_origins_come_from_the_environment(cluster, monkeypatch):
    server, guarded = cluster.scheduler.http_server, cluster.scheduler.http_server.request_callback
    monkeypatch.setattr(server, "request_callback", guarded.application)
    monkeypatch.setenv("MPIBOOT_DASHBOARD_ORIGINS", "https://a http://b:1")
    guard.install(cluster.scheduler, cluster.job)
    assert server.request_callback.origins == {"https://a", "http://b:1"}


def test_installing_twice_is_once(cluster):
    before = cluster.scheduler.http_server.request_callback
    guard.install(cluster.scheduler, cluster.job)
    assert cluster.scheduler.http_server.request_callback is before


def test_under_tls_the_cookie_is_secure(tmp_path, preload):
    import ssl

    job = make_job(tmp_path, "job")
    preload.setenv(JOB_DIRECTORY_VARIABLE, str(job))
    trust = ssl.create_default_context(cafile=job / "tls/ca.pem")
    name, value = security.dashboard_cookie("job", security.read_token(job))

    async def ask(url, **headers):
        client = tornado.httpclient.AsyncHTTPClient()
        request = tornado.httpclient.HTTPRequest(
            url, headers=headers, follow_redirects=False, ssl_options=trust
        )
        return await client.fetch(request, raise_error=False)

    async def start():
        async with (
            Scheduler(port=0, dashboard=True, dashboard_address="127.0.0.1:0", **LOOPBACK) as scheduler,
            Worker(scheduler.address, nthreads=1, dashboard_address="127.0.0.1:0", **LOOPBACK) as worker,
        ):
            base = f"https://localhost:{scheduler.http_server.port}"
            first = await ask(f"{base}/status?token={security.read_token(job)}")
            metrics = f"https://127.0.0.1:{worker.http_server.port}/metrics"
            return [
                first.headers["Set-Cookie"],
                (await ask(base + "/status")).code,
                (await ask(base + "/status", Cookie=f"{name}={value}")).code,
                (await ask(metrics)).code,
                (await ask(metrics, Authorization=f"Bearer {security.read_token(job)}")).code,
            ]

    https = read_by_dask(security.dashboard_tls_environment(job))
    with dask.config.set(dask_settings(job)), dask.config.set(https):
        cookie = f"{name}={value}; Path=/; HttpOnly; SameSite=Lax; Secure"
        assert asyncio.run(start()) == [cookie, 403, 200, 403, 200]


def test_preloads_are_named_as_boot_names_them():
    assert security.GUARD_PRELOAD == "mpiboot.preloads.secure"
    assert os.path.exists(guard.__file__.replace("guard.py", "secure.py"))  # noqa: PTH110
