"""The HTTP servers of scheduler and workers answer nobody but the job's owner.

The guard stands before the web application and judges a request by its head, so it covers every route that
there is or will be: pages, plots, statics, JSON, metrics, websockets. Who may pass:

    Authorization: Bearer TOKEN   scheduler and workers (Prometheus, curl, the scheduler's proxy)
    GET …?token=TOKEN             scheduler: gets the job's cookie, and is sent to the address without token
    the job's cookie              scheduler: websockets too, unless a page from elsewhere opened them
"""

from __future__ import annotations

import functools
import hmac
import logging
import re
import urllib.parse
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

from distributed import Scheduler
from distributed.node import ServerNode
from distributed.security import Security
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    ResponseStartLine,
)
from tornado.routing import Router

from mpiboot.errors import SecurityError
from mpiboot.protocol.secrets import (
    check_rank_secrets,
    client_security_arguments,
    dashboard_cookie,
    read_token,
)

logger = logging.getLogger(__name__)

_REFUSAL = {
    True: "This dashboard asks for its token, once: open the link that `mpiboot dashboard` prints.\n",
    False: "This server asks for its job's token: Authorization: Bearer TOKEN.\n",
}


def arm(job_directory: Path) -> None:
    """Guard every HTTP server that this process's scheduler or worker will start, before its first request.

    Called as a preload is imported: distributed imports preloads before it listens, and lets an error there
    end the process, whereas it logs a `dask_setup`'s error and goes on, unguarded.

    Parameters
    ----------
    job_directory : path
        The job's directory.

    Raises
    ------
    SecurityError
        A secret of the job is missing, or Dask's configuration does not ask for encryption.
    """
    check_rank_secrets(job_directory)
    security, ca_file = Security(), client_security_arguments(job_directory)["tls_ca_file"]
    if security.require_encryption is not True or security.tls_ca_file != ca_file:
        raise SecurityError(
            f"Dask's configuration does not ask for the job's encryption: "
            f"distributed.comm.require-encryption is {security.require_encryption!r} (not True), "
            f"distributed.comm.tls.ca-file is {security.tls_ca_file!r} (not {ca_file!r}). "
            "Does a script in activate.d set DASK_ variables?"
        )
    if not hasattr(ServerNode.start_http_server, "mpiboot_guard"):
        ServerNode.start_http_server = guarded_start(ServerNode.start_http_server, job_directory)


def guarded_start(start: Callable[..., None], job_directory: Path) -> Callable[..., None]:
    """Wrap `ServerNode.start_http_server`: what it starts is guarded.

    It binds, listens and returns within one step of the event loop, so no request is served before the guard
    is there.

    Parameters
    ----------
    start : callable
        The method.
    job_directory : path
        The job's directory.

    Returns
    -------
    callable
        The method to put in its place.
    """

    @functools.wraps(start)
    def start_http_server(server: Any, *args: Any, **kwargs: Any) -> None:
        start(server, *args, **kwargs)
        install(server, job_directory)

    start_http_server.mpiboot_guard = True  # type: ignore[attr-defined]
    return start_http_server


def install(server: Any, job_directory: Path) -> None:
    """Put the guard before the HTTP server of a scheduler or worker; a second time changes nothing.

    Parameters
    ----------
    server : distributed.Scheduler or distributed.Worker
        With its HTTP server started.
    job_directory : path
        The job's directory.
    """
    http_server = server.http_server
    if not isinstance(http_server.request_callback, Guard):
        http_server.request_callback = Guard(
            http_server.request_callback, server, job_directory.name, read_token(job_directory)
        )


class Answer(NamedTuple):
    """What the guard itself replies."""

    status: HTTPStatus
    headers: dict[str, str]
    body: str


class Guard(Router):  # type: ignore[misc]
    """Passes a request on to `application`, or answers it."""

    def __init__(self, application: Router, server: Any, job_name: str, token: str) -> None:
        self.application = application
        self.server = server
        self.has_pages = isinstance(server, Scheduler)
        self.token = token
        self.cookie_name, self.cookie_value = dashboard_cookie(job_name, token)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate | None:
        answer = self.judge(request)
        if answer is None:
            return self.application.find_handler(request, **kwargs)
        if answer.status is HTTPStatus.FORBIDDEN:
            # The path alone: a query may hold another job's token.
            logger.debug("refused %s %s from %s", request.method, request.path, request.remote_ip)
        return _Reply(request, answer)

    def judge(self, request: HTTPServerRequest) -> Answer | None:
        """Give the answer to a request, or None: it may pass."""
        refused = Answer(HTTPStatus.FORBIDDEN, {}, _REFUSAL[self.has_pages])
        tokens = request.query_arguments.get("token")
        if tokens:
            # Judged by its token alone, so that none, right or wrong, reaches the application and its log.
            right = self.has_pages and request.method in ("GET", "HEAD") and _same(tokens[-1], self.token)
            return self._welcome(request) if right else refused
        if not self._is_bearer(request) and not self._has_cookie(request):
            return refused
        if self.has_pages and (target := re.match(r"/proxy/(\d+)/(.*?)/", request.path)):
            # The scheduler shows a worker's pages through itself; its websockets would go anywhere one asks.
            if not self._is_worker(host=target[2], port=int(target[1])):
                return refused
            request.headers["Authorization"] = f"Bearer {self.token}"
        return None

    def _is_bearer(self, request: HTTPServerRequest) -> bool:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and _same(value.strip(), self.token)

    def _has_cookie(self, request: HTTPServerRequest) -> bool:
        cookie = request.cookies.get(self.cookie_name)
        if not self.has_pages or cookie is None or not _same(cookie.value, self.cookie_value):
            return False
        # A browser adds the cookie to what a page from another port of this host asks for, SameSite or not,
        # and lets that page read a websocket. It also names the page's origin then.
        origin = request.headers.get("Origin")
        return origin is None or urllib.parse.urlsplit(origin).netloc.lower() == request.host.lower()

    def _is_worker(self, host: str, port: int) -> bool:
        workers = self.server.workers.values()
        return any(worker.host == host and worker.services.get("dashboard") == port for worker in workers)

    def _welcome(self, request: HTTPServerRequest) -> Answer:
        cookie = f"{self.cookie_name}={self.cookie_value}; Path=/; HttpOnly; SameSite=Lax"
        return Answer(
            HTTPStatus.FOUND,
            {
                "Location": _without_token(request.path, request.query),
                "Set-Cookie": cookie + ("; Secure" if request.protocol == "https" else ""),
                "Referrer-Policy": "no-referrer",
            },
            "",
        )


class _Reply(HTTPMessageDelegate):  # type: ignore[misc]
    """Writes an answer once the request has been read."""

    def __init__(self, request: HTTPServerRequest, answer: Answer) -> None:
        self.request = request
        self.answer = answer

    def finish(self) -> None:
        body = b"" if self.request.method == "HEAD" else self.answer.body.encode()
        headers = HTTPHeaders(
            {
                "Content-Type": "text/plain; charset=utf-8",
                "Content-Length": str(len(body)),
                "Cache-Control": "no-store",
                **self.answer.headers,
            }
        )
        start_line = ResponseStartLine("HTTP/1.1", self.answer.status, self.answer.status.phrase)
        self.request.connection.write_headers(start_line, headers, body)
        self.request.connection.finish()


def _same(given: str | bytes, right: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given if isinstance(given, bytes) else given.encode(), right.encode())


def _without_token(path: str, query: str) -> str:
    """Give the address without its token, relative: it holds behind a proxy, and leads to no other host."""
    rest = [pair for pair in query.split("&") if urllib.parse.unquote_plus(pair.partition("=")[0]) != "token"]
    return "./" + path.rpartition("/")[2] + ("?" + "&".join(rest) if rest else "")
