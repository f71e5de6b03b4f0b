"""What boot and the scheduler's preload tell each other, over boot's socket in the job's folder on the first node.

One JSON object per line, both ways. Each side sees at once when the other dies: boot's death closes the scheduler, and
the scheduler's death ends the job.

| event of the scheduler | keys beside `time`, in seconds since the epoch |
|---|---|
| `scheduler` | `id`, `address`, `dashboard_port` (None: no dashboard): it listens |
| `worker`, `lost-worker` | `address`, `n`: workers that there are now; of a new one also `name`, `ip` |
| `worker-exit`, a nanny's | `address`, `name`, `ip`, `exit_status`, `limit_bytes`, `memory` |
|  | (`limit`, `cgroup` or None: what ended it for its memory) |
| `hung-worker` | `address`, `silent_s`: it is ended |
| `client`, `lost-client` | `client` |
| `closed` | `reason` |

| command of boot | keys |
|---|---|
| `close` | `reason`: close the scheduler |
| `announce` | `message`: an event for the clients |

Boot and preloads import this module; it imports no other of mpiboot.
"""

import json
from typing import Any


def encode(message: dict[str, Any]) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Return a message as it was before `encode`."""
    message: dict[str, Any] = json.loads(line)
    return message
