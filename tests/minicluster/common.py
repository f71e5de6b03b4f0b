"""The error that the user reads, and the wait for a state."""

from __future__ import annotations

import time
from collections.abc import Callable


class MiniclusterError(Exception):
    """A failure that the user reads as one line."""


def wait_until(probe: Callable[[], bool], what: str, deadline: float, interval_s: float = 0.05) -> None:
    started = time.monotonic()
    while not probe():
        if time.monotonic() > deadline:
            raise MiniclusterError(f"waited {time.monotonic() - started:.0f} s in vain until {what}")
        time.sleep(interval_s)
