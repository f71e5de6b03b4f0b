"""The guard of the HTTP servers of scheduler and workers: only the job's owner gets answers.

The guard checks the head of each request before the web application sees it, so it covers every route: pages, plots,
statics, JSON, metrics, websockets. These requests pass:

    Authorization: Bearer TOKEN   scheduler and workers (Prometheus, curl, the scheduler's proxy)
    GET page?token=TOKEN          scheduler: sets the job's cookie, and redirects to the address without the token
    data?token=TOKEN              scheduler: JSON, websockets, whatever is no page; dask-labextension keeps no cookie
    the job's cookie              scheduler: websockets too, unless a page of another origin opened them; the origins that
                                  `dashboard_origins` names count as the scheduler's own

The guard refuses any other request as soon as it has the head, and closes the connection without reading the body.
`preloads.pending` limits the connections on which no request has passed.

`preloads.secure` imports this module; it imports distributed and tornado.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import urllib.parse
from collections.abc import Callable, Collection
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

from distributed import Scheduler
from distributed.security import Security
from tornado.escape import parse_qs_bytes
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    ResponseStartLine,
)
from tornado.iostream import IOStream
from tornado.routing import Router

from mpiboot.distributed_internals import (
    TLS_LOGGER,
    after_handshake,
    after_http_start,
    after_tls_start,
    http_application,
    is_worker_dashboard,
    replace_http_application,
    request_stream,
)
from mpiboot.errors import SecurityError
from mpiboot.preloads.pending import FewHandshakeFailures, PendingConnections, max_pending
from mpiboot.protocol.secrets import (
    check_rank_secrets,
    client_security_arguments,
    dashboard_cookie,
    read_token,
)
from mpiboot.protocol.variables import DASHBOARD_ORIGINS_VARIABLE

logger = logging.getLogger(__name__)

# The prefix that Open OnDemand's proxy leaves in the path of a request (its route /node; /rnode removes it).
_NODE_PREFIX = re.compile(r"/node/[^/]+/\d+(?=/)")
# Paths of the scheduler, and behind its proxy of workers, that are no pages: what programs and pages load.
_DATA = re.compile(
    r"(/proxy/\d+/[^/]+)?(/(health|metrics|json|api|eventstream|statics?)(/.*)?|/.*\.(json|js|css|map|png|svg|ico|woff2?))"
)

_REFUSAL = {
    True: "This dashboard needs the job's token once. Open the link that `mpiboot dashboard` prints.\n",
    False: "This server needs the job's token: Authorization: Bearer TOKEN.\n",
}


def arm(job_directory: Path) -> None:
    """Guard every HTTP server of this process's scheduler or worker, and limit every listener's pending connections.

    Call this while a preload is imported: distributed imports preloads before it listens, and an import error ends the
    process. An error in `dask_setup` is only logged, and the server would run unguarded.

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
            f"distributed.comm.tls.ca-file is {security.tls_ca_file!r} (not {ca_file!r})",
            "Let no --env-var, and no script in the environment's etc/conda/activate.d, set DASK_DISTRIBUTED__COMM "
            "variables, and submit the job again",
        )
    after_http_start(lambda server: install(server, job_directory))
    after_tls_start(_bound)
    log = logging.getLogger(TLS_LOGGER)
    if not any(isinstance(known, FewHandshakeFailures) for known in log.filters):
        log.addFilter(FewHandshakeFailures())


def _bound(listener: Any, tcp_server: Any) -> None:
    """Limit the connections to one of Dask's listeners that have not finished their TLS handshake."""
    after_handshake(listener, PendingConnections(tcp_server, max_pending()).admit)


def install(server: Any, job_directory: Path) -> None:
    """Put the guard before the HTTP server of a scheduler or worker; a second call changes nothing.

    Parameters
    ----------
    server : distributed.Scheduler or distributed.Worker
        The scheduler or worker; its HTTP server has started.
    job_directory : path
        The job's directory.
    """
    application = http_application(server)
    if not isinstance(application, Guard):
        pending = PendingConnections(server.http_server, max_pending())
        guard = Guard(
            application,
            server,
            job_directory.name,
            read_token(job_directory),
            pending.admit,
            os.environ.get(DASHBOARD_ORIGINS_VARIABLE, "").split(),
        )
        replace_http_application(server, guard)


class GuardResponse(NamedTuple):
    """A response that the guard gives instead of the application.

    Attributes
    ----------
    status : HTTPStatus
        403, or 302 to the address without its token.
    headers : dict of str to str
        Headers in addition to those of every response.
    body : str
        The text of the response.
    """

    status: HTTPStatus
    headers: dict[str, str]
    body: str


class Guard(Router):  # type: ignore[misc]
    """Passes a request on to the application, or responds to it.

    Parameters
    ----------
    application : tornado.routing.Router
        The application that is guarded.
    server : distributed.Scheduler or distributed.Worker
        The application's server; only a scheduler takes cookies and shows pages of its workers.
    job_name : str
        Name of the job's directory.
    token : str
        The job's token.
    admit : callable
        Called with the stream of each connection over which a request passed.
    origins : collection of str, default ()
        Origins besides the server's own whose pages may use the cookie: `https://hub.example.org`.
    """

    def __init__(
        self,
        application: Router,
        server: Any,
        job_name: str,
        token: str,
        admit: Callable[[IOStream], None],
        origins: Collection[str] = (),
    ) -> None:
        self.application = application
        self.admit = admit
        self.server = server
        self.has_pages = isinstance(server, Scheduler)
        self.token = token
        self.origins = frozenset(origins)
        self.cookie_name, self.cookie_value = dashboard_cookie(job_name, token)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate | None:
        """Return the application's handler for a request, or one that gives the guard's response."""
        response = self.judge(request)
        if response is None:
            self.admit(request_stream(request))
            return self.application.find_handler(request, **kwargs)
        if response.status is HTTPStatus.FORBIDDEN:
            # Log only the path: the query may contain another job's token.
            logger.debug("refused %s %s from %s", request.method, request.path, request.remote_ip)
        return _ResponseWriter(request, response)

    def judge(self, request: HTTPServerRequest) -> GuardResponse | None:
        """Return the guard's response to a request; None if the request may pass."""
        refused = GuardResponse(HTTPStatus.FORBIDDEN, {}, _REFUSAL[self.has_pages])
        if prefix := _NODE_PREFIX.match(request.path):
            request.path, request.uri = request.path[prefix.end() :], request.uri[prefix.end() :]
        tokens = request.query_arguments.get("token")
        if tokens:
            # Only the token decides here, so that no token, right or wrong, reaches the application and its log.
            if not self.has_pages or not _same(tokens[-1], self.token):
                return refused
            if _is_page(request):
                return self._welcome(request) if request.method in ("GET", "HEAD") else refused
            _remove_token(request)
        elif not self._is_bearer(request) and not self._has_cookie(request):
            return refused
        # The guard has judged the origin. The application compares it with the host, which a proxy may have rewritten.
        request.headers.pop("Origin", None)
        if self.has_pages and (target := re.match(r"/proxy/(\d+)/(.*?)/", request.path)):
            # The scheduler is a proxy for its workers' pages, and its websocket proxy would connect to any address in a
            # request.
            if not is_worker_dashboard(self.server, host=target[2], port=int(target[1])):
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
        # Even with SameSite, a browser sends the cookie with requests of pages from other ports of this host, and lets
        # such a page read a websocket. The header Origin then names the page's origin.
        origin = request.headers.get("Origin", "").lower()
        return (
            not origin
            or origin in self.origins
            or urllib.parse.urlsplit(origin).netloc == request.host.lower()
        )

    def _welcome(self, request: HTTPServerRequest) -> GuardResponse:
        cookie = f"{self.cookie_name}={self.cookie_value}; Path=/; HttpOnly; SameSite=Lax"
        return GuardResponse(
            HTTPStatus.FOUND,
            {
                "Location": _without_token(request.path, request.query),
                "Set-Cookie": cookie + ("; Secure" if request.protocol == "https" else ""),
                "Referrer-Policy": "no-referrer",
            },
            "",
        )


class _ResponseWriter(HTTPMessageDelegate):  # type: ignore[misc]
    """Writes a response once the request's head has been read. tornado then closes the connection, and reads no body."""

    def __init__(self, request: HTTPServerRequest, response: GuardResponse) -> None:
        self.request = request
        self.response = response

    def headers_received(self, *args: Any) -> None:
        body = b"" if self.request.method == "HEAD" else self.response.body.encode()
        headers = HTTPHeaders(
            {
                "Content-Type": "text/plain; charset=utf-8",
                "Content-Length": str(len(body)),
                "Cache-Control": "no-store",
                "Connection": "close",
                **self.response.headers,
            }
        )
        start_line = ResponseStartLine("HTTP/1.1", self.response.status, self.response.status.phrase)
        self.request.connection.write_headers(start_line, headers, body)
        self.request.connection.finish()


def _same(given: str | bytes, right: str) -> bool:
    """Compare a secret that a request contains with the right one, in constant time."""
    return hmac.compare_digest(given if isinstance(given, bytes) else given.encode(), right.encode())


def _is_page(request: HTTPServerRequest) -> bool:
    """Whether a request is for a page, which a browser shows, and whose parts need the cookie."""
    if request.headers.get("Upgrade", "").lower() == "websocket":
        return False
    return "text/html" in request.headers.get("Accept", "") or not _DATA.fullmatch(request.path)


def _remove_token(request: HTTPServerRequest) -> None:
    """Remove the token from a request, so that it reaches neither the application nor its log."""
    request.query = _query_without_token(request.query)
    request.uri = request.path + ("?" + request.query if request.query else "")
    request.query_arguments = parse_qs_bytes(request.query, keep_blank_values=True)
    request.arguments = dict(request.query_arguments)


def _without_token(path: str, query: str) -> str:
    """Return an address without its token: relative, so that it works behind a proxy and leads to no other host."""
    rest = _query_without_token(query)
    return "./" + path.rpartition("/")[2] + ("?" + rest if rest else "")


def _query_without_token(query: str) -> str:
    pairs = query.split("&")
    return "&".join(pair for pair in pairs if urllib.parse.unquote_plus(pair.partition("=")[0]) != "token")
