"""Run a command among mounts of its own, which no other process sees: another name for a folder, or one that is hidden.

Needs root. For environments.py and the tests of promise 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SCRIPT = """
set -e
while [ "$1" != -- ]; do
    if [ -n "$1" ]; then
        mkdir -p "$2"
        mount --bind "$1" "$2"
    elif [ -d "$2" ]; then
        mount -t tmpfs -o mode=0755 hidden "$2"
    elif [ -e "$2" ]; then
        mount --bind /dev/null "$2"
    fi
    shift 2
done
shift
cd /
exec "$@"
"""


class Mount(NamedTuple):
    """A folder `source` that is seen at `target`; without a source, `target` is hidden."""

    source: Path | None
    target: Path


def private(mounts: Sequence[Mount], command: Sequence[object]) -> list[str]:
    """Return a command that runs another one with these mounts, made in this order."""
    words = [str(word or "") for mount in mounts for word in mount]
    unshare = ["unshare", "--mount", "--propagation=private"]
    return [*unshare, "sh", "-c", SCRIPT, "private", *words, "--", *map(str, command)]
