"""The `envpack` command, as a user types it. For the tests of promise 9."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privatemounts import Mount, private

ENVPACK = Path(sys.executable).with_name("envpack")


def envpack(*words: object, mounts: Sequence[Mount] = (), by: Sequence[object] = ()) -> dict[str, Any]:
    """Run `envpack` among these mounts, by another program, and return the result that it prints."""
    argv = [*by, ENVPACK, *words, "--json"]
    done = subprocess.run(
        private(mounts, argv) if mounts else list(map(str, argv)), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result
