"""Writes the agents' program: one file with the code of all modules that an agent and its children import.

Agents start on all nodes at once from the shared file system, where Python makes about six requests to import a module.
The program holds the modules of mpiboot and envpack that run on nodes, the modules of the standard library that these
import, and zstandard, all compiled for the running Python. It is a compiled module (`.pyc`), because Python runs that
without an import; to run a zip file, it would import a dozen modules first.

Only `boot.agents` imports this module. It imports `envpack.common.elf` and `protocol.job_directory`.
"""

import importlib.util
import marshal
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from pathlib import Path
from types import CodeType
from typing import Any

from envpack.common.elf import HEAD_BYTES, loaded_bytes, read_library
from mpiboot.protocol.job_directory import write_bytes_atomic

# The program is this module's code, with all other modules in the place of the constant PLACEHOLDER.
START = "mpiboot.agent.program_start"
PLACEHOLDER = b"boot puts the modules here"
# The program holds all modules of PACKAGES, the modules MODULES, and those of STANDARD_LIBRARY.
PACKAGES = (
    *("envpack.archive", "envpack.common", "envpack.stage"),
    *("mpiboot.agent", "mpiboot.common", "mpiboot.protocol"),
)
MODULES = ("envpack", "envpack.errors", "mpiboot", "mpiboot.errors", "zstandard", "zstandard.backend_c")
# What these import, or try to import, in Python 3.10 to 3.13. The program marks the modules that this Python lacks, so
# that agents do not search for them. Each agent would search for a module that this list lacks:
# tests/unit/boot/test_agent_program.py finds such a module.
STANDARD_LIBRARY = """
    array ast _asyncio asyncio asyncio.base_events asyncio.base_futures asyncio.base_subprocess asyncio.base_tasks
    asyncio.constants asyncio.coroutines asyncio.events asyncio.exceptions asyncio.format_helpers asyncio.futures
    asyncio.locks asyncio.log asyncio.mixins asyncio.protocols asyncio.queues asyncio.runners
    asyncio.selector_events asyncio.sslproto asyncio.staggered asyncio.streams asyncio.subprocess asyncio.taskgroups
    asyncio.tasks asyncio.threads asyncio.timeouts asyncio.transports asyncio.trsock asyncio.unix_events base64
    binascii _bisect bisect _blake2 bz2 collections collections.abc _collections_abc _colorize concurrent
    concurrent.futures concurrent.futures._base concurrent.futures.thread contextlib _contextvars contextvars copy
    copyreg dataclasses dis enum fcntl fnmatch functools __future__ genericpath glob grp _hashlib hashlib _heapq
    heapq importlib importlib._abc importlib.machinery importlib.util inspect ipaddress _json json json.decoder
    json.encoder json.scanner keyword linecache locale logging lzma math msvcrt nt ntpath _opcode opcode
    _opcode_metadata operator org os pathlib pathlib._abc pathlib._local platform posixpath _posixsubprocess _queue
    queue re re._casefix re._compiler re._constants re._parser reprlib resource select selectors shlex shutil signal
    _socket socket sre_compile sre_constants sre_parse _ssl ssl stat string _struct struct subprocess textwrap threading
    token tokenize traceback types _typing typing urllib urllib.parse warnings weakref _weakrefset _winapi _wmi zlib
"""
# shutil imports these for archives that no agent unpacks; the program marks them as absent.
HIDDEN = {"bz2", "lzma"}
# The C library's files: every process has loaded them, or finds them in the system's folders.
SYSTEM_LIBRARIES = (
    *(b"libc.so", b"libdl.so", b"libm.so", b"libpthread.so", b"librt.so", b"libutil.so"),
    b"ld-linux",
)
# An agent needs no larger extension module at its start. Only its staging child does: zstandard's.
EXTENSION_BYTES_MAX = 256 * 1024
THREADS = 16
# zlib's level 6 would save 10 % of the bytes, and take 45 ms more.
COMPRESSION_LEVEL = 1


def write_agent_program(path: Path) -> None:
    """Write the program. The same Python must run it, as `python -I -S -B PATH JOB_DIRECTORY`.

    Raises
    ------
    OSError
        The program could not be written.
    """
    write_bytes_atomic(path, agent_program())


def agent_program() -> bytes:
    """Return the program's bytes."""
    names = module_names()
    with ThreadPoolExecutor(THREADS) as pool:  # the threads wait for a slow file system at the same time
        modules = {
            name: entry for name, entry in zip(names, pool.map(module_entry, names), strict=True) if entry
        }
    # zlib comes first, uncompressed, because it unpacks the others. It may also be part of the interpreter.
    first = {"zlib": modules.pop("zlib")} if "zlib" in modules else {}
    content = marshal.dumps((first, zlib.compress(marshal.dumps(modules), COMPRESSION_LEVEL)))
    start_spec = find(START)
    assert start_spec
    start = code_of(start_spec)
    constants = tuple(content if constant == PLACEHOLDER else constant for constant in start.co_consts)
    # PEP 552: flags, then the source's time and size. Python ignores them in a file that it runs directly.
    header = importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, 0, 0)
    return header + marshal.dumps(start.replace(co_consts=constants))


def module_names() -> list[str]:
    """Return the names of all modules that the program should hold."""
    own = []
    for package in PACKAGES:
        spec = find(package)
        assert spec and spec.submodule_search_locations
        files = [file for folder in spec.submodule_search_locations for file in Path(folder).iterdir()]
        stems = {file.stem for file in files if file.suffix in (".py", ".pyc")}
        own += [package, *(f"{package}.{stem}" for stem in sorted(stems - {"__init__"}))]
    return [*MODULES, *own, *STANDARD_LIBRARY.split()]


def module_entry(name: str) -> tuple[str, str, bytes] | None:
    """Return a module's `Entry` (program_start) in the program; None if the module is part of the interpreter."""
    spec = None if name in HIDDEN else find(name)
    if spec is None:
        return "", "absent", b""
    if not spec.has_location or not spec.origin:
        return None
    if isinstance(spec.loader, ExtensionFileLoader):
        return spec.origin, "extension", extension_content(Path(spec.origin))
    kind = "module" if spec.submodule_search_locations is None else "package"
    return spec.origin, kind, marshal.dumps(code_of(spec))


def extension_content(path: Path) -> bytes:
    """Return the part of an extension module's file that is loaded into memory; b"" if agents must load the file.

    They must if the module is large, or needs libraries that the dynamic linker finds relative to the file, as in conda
    environments.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        size = loaded_bytes(head)
        if not 0 < size <= EXTENSION_BYTES_MAX:
            return b""
        data = head + file.read(max(0, size - len(head)))
    library = read_library(data)
    if library is None:
        return b""
    by_its_place = any(b"ORIGIN" in run_path for _, run_path in library.run_paths)
    if by_its_place and not all(name.startswith(SYSTEM_LIBRARIES) for name in library.needed):
        return b""
    return data[:size]


def code_of(spec: ModuleSpec) -> CodeType:
    """Return a module's code: from its `.pyc` if that is valid, as in an import, else compiled from its source."""
    loader: Any = spec.loader
    try:
        code: CodeType = loader.get_code(spec.name)
    except (EOFError, TypeError, ValueError):  # a damaged .pyc
        code = loader.source_to_code(loader.get_data(spec.origin), spec.origin)
    return code


def find(name: str) -> ModuleSpec | None:
    """Return a module's spec, without importing the module or its package; None if this Python does not have it."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    # The names may differ: collections.abc replaces itself by _collections_abc.
    if isinstance(spec, ModuleSpec) and spec.name == name:
        return spec
    package = name.rpartition(".")[0]
    if not package:
        return importlib.util.find_spec(name)
    parent = find(package)
    return PathFinder.find_spec(name, parent.submodule_search_locations) if parent else None
