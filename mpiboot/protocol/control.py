"""The messages between boot and the scheduler's preload, over boot's socket in the job's folder on the first node.

One JSON object per line, both ways. Each side notices at once when the other dies: the scheduler then closes, or boot
then ends the job.

| event of the scheduler | keys besides `time`, in seconds since the epoch |
|---|---|
| `scheduler` | `id`, `address`, `dashboard_port` (None: no dashboard): the scheduler listens |
| `worker`, `lost-worker`, `retired-worker` | `address`, `n`: the number of workers now; |
|  | for a new worker also `name`, `ip` |
| `worker-exit`, from a nanny | `address`, `name`, `ip`, `exit_status`, `limit_bytes`, `memory` |
|  | (`limit`, `cgroup` or None: which memory limit ended it) |
| `hung-worker` | `address`, `silent_s`: the worker is terminated |
| `client`, `lost-client` | `client` |
| `closed` | `reason` |

| command of boot | keys |
|---|---|
| `close` | `reason`: close the scheduler |
| `announce` | `message`: an event for the clients |
| `published` | clients can connect: the idle timeout counts from now |

Boot and preloads import this module; it imports no other of mpiboot.
"""

import json
from typing import Any


def encode(message: dict[str, Any]) -> bytes:
    """Return a message as a line of JSON."""
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Return the message in a line of JSON."""
    message: dict[str, Any] = json.loads(line)
    return message
