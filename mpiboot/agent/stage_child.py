"""The agent's child that stages the environment: `agent.pyc --stage`, with its task as JSON on stdin.

It is a process of its own so that the agent can answer boot while a slow file system blocks this one, and can report it
if this one crashes. It prints lines of JSON: if the archive is still arriving, first the sizes and checksums of its
frames; at the end `StageReport.stage`, or the error.

The agent's program starts it, and the agent imports it; it imports envpack's stager only when it stages.
"""

import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from envpack.archive.index import Index

FLAG = "--stage"


class Cancelled(BaseException):
    """The agent ends. The handler of SIGTERM raises this, so that the stager removes what it has half staged."""


def main() -> int:
    signal.signal(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    task = json.load(sys.stdin)
    try:
        result: dict[str, Any] = {"stage": stage_node(**task)}
    except Exception as error:
        result = {"error": str(error) or type(error).__name__}
    except Cancelled:
        return 1
    print(json.dumps(result), flush=True)
    return 0


def on_sigterm(_number: int, _frame: object) -> NoReturn:
    # The batch system and the agent may both send the signal; the second one must not interrupt the removal.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Cancelled


def stage_node(
    archive: str,
    root: str,
    threads: int,
    pack_id: str,
    transport: str,
    carried: str | None,
    copy: tuple[int, int] | None,
) -> dict[str, Any]:
    """Stage the environment on this node.

    Parameters
    ----------
    archive, transport, carried
        As in `protocol.channel_messages.StageOrder`.
    root, threads, pack_id
        As in `protocol.channel_messages.Orders`.
    copy : tuple of int or None
        `ArchiveCopy.descriptors` if the archive is still arriving; None: read it from the path `archive`.

    Returns
    -------
    dict
        `StageReport.stage`.
    """
    start = time.time()
    from envpack.archive.damage import note_damage
    from envpack.errors import CorruptArchiveError
    from envpack.stage.staging import stage, stage_arriving

    if copy:
        from envpack.stage.arrival import Arrival

        result = stage_arriving(
            *(Arrival(*copy), archive, root),
            begin=print_frames,
            jobs=threads,
            expected_pack_id=pack_id,
            transport=transport,
        )
    else:
        try:
            result = stage(
                carried or archive, root, jobs=threads, expected_pack_id=pack_id, transport=transport
            )
        except CorruptArchiveError:
            note_damage(Path(archive))  # for the next submit; envpack has noted it beside the copy
            raise
    if carried:
        Path(carried).unlink()
    return {**result.asdict(), "start": start, "end": time.time()}


def print_frames(index: "Index") -> None:
    """Print the frames' sizes (in bytes) and checksums, for the agent."""
    frames = {"sizes": index.frame_sizes.tolist(), "checks": index.frame_checks.tolist()}
    print(json.dumps({"frames": frames}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
