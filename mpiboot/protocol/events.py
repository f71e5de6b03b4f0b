"""The job's events, `events.jsonl`: one JSON object per line for each phase and each fault.

Only boot writes the file; if boot's node is lost, an agent adds the last line. Clients read it, through
`JobDirectory`. This module imports no other of mpiboot.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MAX_EVENTS_BYTES = 64 * 1024**2


class EventLog:
    """Appends events to `events.jsonl`.

    Parameters
    ----------
    path : Path
        The file; made with mode 0600 if it is missing.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        self._file = os.fdopen(descriptor, "w", buffering=1)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def write(self, event: str, **details: Any) -> None:
        """Append one event.

        Parameters
        ----------
        event : str
            Its kind, such as `phase`, `worker`, `lost-worker`, `closed`.
        **details
            Further keys, with values for JSON; `time` is in seconds since the epoch (default: now).
        """
        line = json.dumps({"time": details.pop("time", time.time()), "event": event, **details}) + "\n"
        try:
            self._file.write(line)
        except OSError as error:  # a full quota must not end a healthy cluster
            logger.warning("%s could not be written: %s", event, error)

    def phase(self, name: str, **details: Any) -> None:
        """Append the beginning of a phase."""
        self.write("phase", phase=name, **details)


def parse_events(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the events of `events.jsonl`; skip lines that are no events, such as a half-written last line."""
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


def last_event(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the event that tells how a job ended, or the last one if it goes on.

    A boot that is cut off may write further events after the other nodes' agents have found it lost. After a requeue,
    only the last boot's events count.

    Returns
    -------
    dict
        The event; without any events, one whose kind is "".
    """
    ended: dict[str, Any] | None = None
    for event in events:
        if event["event"] == "phase" and event.get("phase") == "stage":
            ended = None
        elif event["event"] == "closed":
            ended = ended or event
    return ended or (events[-1] if events else {"event": ""})
