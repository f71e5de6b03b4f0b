"""How often the client asks the batch system, and for how long it goes on when there is no answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from mpiboot.common.units import show_duration
from mpiboot.errors import BatchAwayError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A batch system may not answer for a while, as while it restarts.
SILENCE_S = 120.0
# The first question of a command: the user sees nothing before it is answered.
FIRST_SILENCE_S = 20.0


def poll_interval_s(waited_s: float) -> float:
    """Seconds until the next question, after `waited_s`: one a second for the first minute, then one every 10 s."""
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
