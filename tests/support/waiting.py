"""Waits for a state, with a deadline, and a message that shows the actual state."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_until(done: Callable[[], bool], what: str, timeout_s: float, seen: Callable[[], Any] = str) -> None:
    """Return as soon as `done()` is true; fail after `timeout_s` seconds and show `seen()`."""
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s; seen: {seen()}"
        time.sleep(0.2)
