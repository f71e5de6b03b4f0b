"""Compile the sources that relocation changed: their packed `.pyc` files would be stale. Only the stager imports this."""

from __future__ import annotations

import marshal
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from envpack.archive.bytecode import CHILD, header, own_magic

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from envpack.archive.index import Index


def compile_relocated(
    index: Index, folder: Path, prefix: Path, members: Collection[int] | None = None
) -> list[bytes]:
    """Write the `.pyc` files of relocated sources.

    Parameters
    ----------
    index : Index
        The archive's index.
    folder : Path
        The copy, under its temporary name.
    prefix : Path
        The name that it will get.
    members : collection of int, optional
        Numbers of the sources (default: all).

    Returns
    -------
    list[bytes]
        The paths of the files written: all, unless the staged interpreter cannot run on this node.
    """
    wanted = [item for item in index.meta.get("compile") or [] if members is None or item[0] in members]
    if not wanted:
        return []
    magic = bytes.fromhex(index.meta["python"]["magic"])
    sources = [(os.fsdecode(index.paths[member]), pyc) for member, pyc in wanted]
    names = [(folder / path, prefix / path) for path, _ in sources]
    for _, pyc in sources:
        # The packed `.pyc` belongs to the source as it was before relocation.
        (folder / pyc).unlink(missing_ok=True)
    # A part of the stage has no interpreter; then the rest of it lies under its own name.
    interpreter = (folder if (folder / "bin" / "python").exists() else prefix) / "bin" / "python"
    codes = _compile_here(names) if magic == own_magic() else _compile_there(interpreter, names)
    done = []
    for (path, pyc), code in zip(sources, codes, strict=False):
        if not code:
            continue
        info = (folder / path).stat()
        (folder / pyc).parent.mkdir(exist_ok=True)
        fd = os.open(folder / pyc, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "wb") as file:
            file.write(header(magic, info.st_mtime_ns, info.st_size) + code)
        os.utime(folder / pyc, ns=(time.time_ns(), info.st_mtime_ns))
        done.append(os.fsencode(pyc))
    return done


def _compile_here(names: Iterable[tuple[Path, Path]]) -> Iterator[bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path, name in names:
            try:
                yield marshal.dumps(compile(path.read_bytes(), os.fspath(name), "exec", dont_inherit=True))
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                yield b""


def _compile_there(interpreter: Path, names: Iterable[tuple[Path, Path]]) -> list[bytes]:
    """Compile in the staged interpreter, as this one's bytecode is of another version."""
    import subprocess

    request = b"".join(os.fsencode(path) + b"\0" + os.fsencode(name) + b"\0" for path, name in names)
    try:
        done = subprocess.run(
            [interpreter, "-I", "-S", "-B", "-c", CHILD],
            input=request, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        # Without its `.pyc`, a source is compiled when it is imported, which is slower but not wrong.
        return []
    codes = []
    at = 0
    while at < len(done.stdout):
        size = int.from_bytes(done.stdout[at : at + 4], "little")
        codes.append(done.stdout[at + 4 : at + 4 + size])
        at += 4 + size
    return codes
