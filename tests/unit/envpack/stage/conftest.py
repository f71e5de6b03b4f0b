from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from envpack_trees import SITE, make_venv

import envpack.pack.archive_writer
import envpack.pack.frame_writer
import envpack.pack.walk
from envpack.archive.encoding import read_index
from envpack.pack.base_interpreter import BaseInterpreter
from envpack.pack.interpreter import Interpreter
from envpack.pack.packing import pack
from envpack.stage.marker import marker_path
from envpack.stage.staging import stage


@contextlib.contextmanager
def only_the_venv() -> Iterator[None]:
    """Pack a venv without its base interpreter, and its links as they are: small trees that are easy to predict."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envpack.pack.walk._Walker, "_settle", lambda walker, number: None)
        patch.setattr(envpack.pack.walk, "BaseInterpreter", _NoBase)
        yield


@pytest.fixture(scope="module", autouse=True)
def small_archives() -> Iterator[None]:
    with only_the_venv():
        yield


class _NoBase(BaseInterpreter):
    def __init__(self, prefix: Path, interpreter: Interpreter) -> None:
        super().__init__(prefix, interpreter)
        self.prefix = Path("/nonexistent")


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three versions of one environment, the last the smallest."""
    folder = tmp_path_factory.mktemp("gc")
    prefix = make_venv(folder / "env")
    (prefix / SITE / "demo" / "large.txt").write_text(f"{prefix}\n" * 10_000)
    made = []
    for n in range(3):
        (prefix / "share" / "filler").write_bytes(os.urandom(100_000 * (3 - n)))
        made.append(pack_small(prefix, folder / f"{n}.tar.zst"))
    return made


def pack_small(prefix: Path, archive: Path) -> Path:
    with only_the_venv(), pytest.MonkeyPatch.context() as patch:
        for module in (envpack.pack.frame_writer, envpack.pack.archive_writer):
            patch.setattr(module, "FRAME_BYTES", 1 << 15)
        return pack(prefix, archive, level=1).path


@pytest.fixture
def pack_touched(archives: list[Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that packs the environment with the times of some files set to 2001."""
    source = Path(read_index(archives[2]).prefix)

    def pack_with_times(*paths: Path) -> Path:
        times = {source / path: (source / path).stat() for path in paths}
        for path in times:
            os.utime(path, (1_000_000_000, 1_000_000_000))
        try:
            return pack_small(source, tmp_path / "touched.tar.zst")
        finally:
            for path, info in times.items():
                os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))

    return pack_with_times


@pytest.fixture
def staged(archives: list[Path], tmp_path: Path) -> list[Path]:
    """All three, last used 3, 2 and 1 hours ago."""
    prefixes = [stage(archive, tmp_path).prefix for archive in archives]
    for n, prefix in enumerate(prefixes):
        at = time.time() - 3600 * (3 - n)
        os.utime(marker_path(prefix), (at, at))
    return prefixes
