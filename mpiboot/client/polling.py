"""How often the batch system is asked, and for how long when it does not answer.

For `client` alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from mpiboot.common.units import show_duration
from mpiboot.errors import (
    BatchAwayError,
)

logger = logging.getLogger(__name__)


# The batch system itself may be away for a while, for a restart say.
SILENCE_S = 120.0
# Where nothing is known of a job yet, somebody waits for a first word.
FIRST_SILENCE_S = 20.0
T = TypeVar("T")


def patiently(ask: Callable[[], T], patience_s: float) -> T:
    """What `ask` returns; asked again while the batch system is away, for `patience_s` at most."""
    began = time.monotonic()
    said = False
    while True:
        try:
            return ask()
        except BatchAwayError as error:
            waited = time.monotonic() - began
            if waited >= patience_s:
                raise
            if not said:
                logger.warning("%s; asking again for %s", error, show_duration(patience_s - waited))
                said = True
            time.sleep(poll_interval_s(waited))


def poll_interval_s(waited_s: float) -> float:
    """Gentle on the batch system: a question a second for the first minute, then every 10 s."""
    return 1.0 if waited_s < 60 else 10.0
