"""The header of `.pyc` files, and a program that compiles sources in another interpreter. Packing and staging import it.

A `.pyc` holds its source's modification time and size. Staging keeps the time, but relocation changes some sources' size
and content; the `.pyc` files of those are made on the node.
"""

from __future__ import annotations

import importlib._bootstrap_external as _bootstrap

HEADER_BYTES = 16

# A program for `python -c`. It reads pairs (file to read, name that it will have), each ended by a NUL, and writes for
# each pair the size and the bytes of the marshalled code: no bytes if it does not compile, as some packages' test data.
CHILD = """
import marshal, os, sys, warnings
warnings.simplefilter("ignore")
names = sys.stdin.buffer.read().split(b"\\0")[:-1]
out = sys.stdout.buffer
for path, name in zip(names[::2], names[1::2]):
    try:
        with open(path, "rb") as source:
            code = marshal.dumps(compile(source.read(), os.fsdecode(name), "exec", dont_inherit=True))
    except Exception:
        code = b""
    out.write(len(code).to_bytes(4, "little") + code)
"""


def own_magic() -> bytes:
    """Return the magic number of this interpreter's `.pyc` files."""
    magic: bytes = _bootstrap.MAGIC_NUMBER
    return magic


def header(magic: bytes, mtime_ns: int, size: int) -> bytes:
    """Return the first 16 bytes of a `.pyc` that is valid while its source has this time and size (PEP 552).

    Parameters
    ----------
    magic : bytes
        The magic number of the interpreter that is to load it.
    mtime_ns : int
        The source's modification time, in nanoseconds since 1970.
    size : int
        The source's size, in bytes.
    """
    seconds = mtime_ns // 1_000_000_000 & 0xFFFFFFFF
    return magic + bytes(4) + seconds.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")
