"""`.pyc` files that are valid where they are staged.

A `.pyc` holds its source's time and size; staging keeps the time, but a relocated source has another size and content.
Those few are compiled on the node, from what was staged.
"""

from __future__ import annotations

import importlib._bootstrap_external as _bootstrap

HEADER_BYTES = 16

# Reads pairs (file to read, name it will have), each ended by a NUL; writes size and marshalled code of each. An empty
# one did not compile: some packages ship such files as test data.
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
    """Return the magic number of the interpreter that runs this."""
    magic: bytes = _bootstrap.MAGIC_NUMBER
    return magic


def header(magic: bytes, mtime_ns: int, size: int) -> bytes:
    """Return what a `.pyc` starts with: valid for as long as its source has this time and size (PEP 552)."""
    seconds = mtime_ns // 1_000_000_000 & 0xFFFFFFFF
    return magic + bytes(4) + seconds.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")
