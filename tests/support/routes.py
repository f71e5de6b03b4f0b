"""Every route of the HTTP server of a scheduler or worker, read from its routers.

For the tests of the dashboard's guard. test_security.py sends this file's text into a job, so it imports no other module
of the tests.
"""

from __future__ import annotations

import re
from typing import Any

from distributed.http.routing import RoutingApplication
from tornado.routing import PathMatches, Router
from tornado.web import Application


def sample(pattern: str) -> str:
    """Return a path that a route's pattern matches."""
    path = re.sub(r"\(\\d\+\)", "1", pattern.rstrip("$"))
    path = re.sub(r"\((\?P<\w+>|\?:)?[^()]*\)\??", "x", path).replace("/?", "").replace("\\", "") or "/"
    assert re.match(pattern, path), f"teach sample() the pattern {pattern!r}, which {path!r} does not match"
    return path


def routes(router: Any, seen: set[int] | None = None) -> set[str]:
    """Return a path for each route of this router and of the applications that are nested in it or added to it."""
    seen = set() if seen is None else seen
    if id(router) in seen:
        return set()
    seen.add(id(router))
    found: set[str] = set()
    if isinstance(router, Application):
        added = router.applications if isinstance(router, RoutingApplication) else []
        for part in (router.default_router, router.wildcard_router, *added):
            found |= routes(part, seen)
        return found
    for rule in router.rules:
        if isinstance(rule.matcher, PathMatches):
            found.add(sample(rule.matcher.regex.pattern))
        if isinstance(rule.target, Router):
            found |= routes(rule.target, seen)
    return found


def all_routes(server: Any) -> list[str]:
    """Return a path for each route of a server, and paths that no router knows."""
    return sorted(routes(server.http_application) | {"/", "/nowhere", "//", "/proxy/22/127.0.0.1/"})
