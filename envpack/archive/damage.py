"""Remembers that an archive was found damaged: an empty file `ARCHIVE.damaged` beside it.

Staging and `envpack verify` note the damage; packing then does not reuse that archive, and replaces it.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def mark(archive: Path) -> Path:
    """Return the path of an archive's mark."""
    return archive.with_name(archive.name + ".damaged")


def note_damage(archive: Path) -> None:
    """Mark an archive as damaged, if its folder can be written. If not, `envpack pack --force` replaces it."""
    with contextlib.suppress(OSError):
        os.close(os.open(mark(archive), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def is_damaged(archive: Path) -> bool:
    """Tell whether an archive is marked as damaged."""
    return mark(archive).exists()
