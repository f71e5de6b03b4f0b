"""Compile the `.pyc` files that an environment lacks or has stale, while the other files are packed.

Only `envpack.pack.archive_writer` imports this module.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envpack.archive.bytecode import CHILD, HEADER_BYTES, header, own_magic
from envpack.pack.members import DIRECTORY, FILE, Member

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

_QUERY = """
import json, sys
import importlib._bootstrap_external as bootstrap
print(json.dumps([list(sys.version_info[:2]), sys.implementation.cache_tag, bootstrap.MAGIC_NUMBER.hex()]))
"""


class Compiler:
    """A context manager that adds `.pyc` files to the members of an archive, valid where they will be staged.

    Parameters
    ----------
    prefix : Path
        The environment's root folder.
    members : list[Member]
        The environment's members, from `arrange`.
    jobs : int
        Number of processes that compile.

    Attributes
    ----------
    python : dict or None
        `magic`, `cache_tag` and `version` of the environment's interpreter; None if it does not run.
    warnings : list[str]
        Messages for the user.
    pyc_paths : list[tuple[bytes, bytes]]
        Path of each source in the standard library and in site-packages, and of its `.pyc`. Relocated ones are
        compiled on the node.
    """

    def __init__(self, prefix: Path, members: list[Member], jobs: int) -> None:
        self._prefix = prefix
        self._members = members
        self._jobs = jobs
        self._children: list[subprocess.Popen[bytes]] = []
        self._requests: list[IO[bytes]] = []
        self.warnings: list[str] = []
        self.pyc_paths: list[tuple[bytes, bytes]] = []
        self.python = _ask_interpreter(prefix)
        if self.python is None and any(member.path.startswith(b"lib/python") for member in members):
            self.warnings.append(
                f"{prefix / 'bin' / 'python'} does not run on this host, so missing and stale .pyc files are not compiled"
            )

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
        for request in self._requests:
            request.close()

    def members(self) -> Iterator[Member]:
        """Yield folders, files, compiled files, links, in the archive's order."""
        missing = self._missing()
        kept = [member for member in self._members if member.kind == FILE and member.path not in missing]
        self._start(list(missing.values()))
        folders = {member.path for member in self._members if member.kind == DIRECTORY}
        new = {pyc.rpartition(b"/")[0] for pyc in missing} - folders
        yield from sorted(
            [m for m in self._members if m.kind == DIRECTORY] + [Member(path, DIRECTORY) for path in new],
            key=lambda member: member.path,
        )
        yield from kept
        yield from self._compiled(missing)
        for member in self._members:
            if member.kind not in (DIRECTORY, FILE):
                yield member

    def _missing(self) -> dict[bytes, Member]:
        """Return the `.pyc` files to be compiled: path -> source."""
        if self.python is None:
            return {}
        tag = self.python["cache_tag"].encode()
        library = b"lib/python%d.%d/" % tuple(self.python["version"])
        magic = bytes.fromhex(self.python["magic"])
        by_path = {member.path: member for member in self._members}
        missing = {}
        for path, source in by_path.items():
            if source.kind != FILE or not path.endswith(b".py") or not path.startswith(library):
                continue
            folder, _, name = path.rpartition(b"/")
            pyc = folder + b"/__pycache__/" + name[:-2] + tag + b".pyc"
            self.pyc_paths.append((path, pyc))
            there = by_path.get(pyc)
            if there is None or not _is_valid(there, source, magic):
                missing[pyc] = source
        return missing

    def _start(self, sources: list[Member]) -> None:
        """Start interpreters that compile every n-th source each; each waits until its output is read."""
        count = min(self._jobs, len(sources))
        for n in range(count):
            request = tempfile.TemporaryFile()  # noqa: SIM115
            self._requests.append(request)
            for source in sources[n::count]:
                name = os.path.join(os.fsencode(self._prefix), source.path)  # noqa: PTH118
                request.write(source.source + b"\0" + name + b"\0")
            request.seek(0)
            self._children.append(
                subprocess.Popen(
                    [self._prefix / "bin" / "python", "-I", "-S", "-B", "-c", CHILD],
                    stdin=request,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            )

    def _compiled(self, missing: dict[bytes, Member]) -> Iterator[Member]:
        magic = bytes.fromhex(self.python["magic"]) if self.python else b""
        for n, (pyc, source) in enumerate(missing.items()):
            stdout = self._children[n % len(self._children)].stdout
            assert stdout is not None
            size = int.from_bytes(stdout.read(4), "little")
            code = stdout.read(size)
            if not size or len(code) != size:
                continue
            data = header(magic, source.mtime_ns, source.size) + code
            yield Member(pyc, FILE, 0o644, source.mtime_ns, len(data), data=data)


def _is_valid(pyc: Member, source: Member, magic: bytes) -> bool:
    if pyc.kind != FILE:
        return True
    try:
        with open(pyc.source, "rb") as file:  # noqa: PTH123
            start = file.read(HEADER_BYTES)
    except OSError:
        return False
    if len(start) == HEADER_BYTES and start[:4] == magic and start[4:8] in (b"\1\0\0\0", b"\3\0\0\0"):
        # Python compares it with a hash of its source, or not at all (PEP 552).
        return True
    return start == header(magic, source.mtime_ns, source.size)


def _ask_interpreter(prefix: Path) -> dict[str, Any] | None:
    """Return version, cache tag and magic number of an environment's interpreter; None if it does not run."""
    if Path(sys.prefix) == prefix:
        version, tag, magic = list(sys.version_info[:2]), sys.implementation.cache_tag, own_magic().hex()
    else:
        try:
            done = subprocess.run(
                [prefix / "bin" / "python", "-I", "-S", "-B", "-c", _QUERY],
                stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True,
            )  # fmt: skip
            version, tag, magic = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
    if not tag or version < [3, 7]:
        return None
    return {"version": version, "cache_tag": tag, "magic": magic}
