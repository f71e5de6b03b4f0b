"""How often the client queries the batch system, and how long it retries without an answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from mpiboot.common.units import show_duration
from mpiboot.errors import BatchAwayError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A batch system may not answer for some time, such as during a restart.
SILENCE_S = 120.0
# A shorter limit for the first query of a command: before its answer, the user sees nothing.
FIRST_SILENCE_S = 20.0


def poll_interval_s(waited_s: float) -> float:
    """Return the seconds until the next query, after `waited_s`: 1 s for the first minute, then 10 s."""
    return 1.0 if waited_s < 60 else 10.0


def retry_while_away(ask: Callable[[], T], give_up_after_s: float) -> T:
    """Return what `ask` returns; call it again while the batch system does not answer.

    Raises
    ------
    BatchAwayError
        There was no answer for `give_up_after_s` seconds.
    """
    start = time.monotonic()
    warned = False
    while True:
        try:
            return ask()
        except BatchAwayError as error:
            waited_s = time.monotonic() - start
            if waited_s >= give_up_after_s:
                raise
            if not warned:
                logger.warning(
                    "%s; asking again for %s", error.problem, show_duration(give_up_after_s - waited_s)
                )
                warned = True
            time.sleep(poll_interval_s(waited_s))
