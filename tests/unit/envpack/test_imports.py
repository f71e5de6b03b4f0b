"""A node loads envpack from a slow file system, at once with all other nodes: what it imports and opens is counted."""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
from pathlib import Path

import pytest
from envpack_trees import make_venv

from envpack.pack.packing import pack

CHECKOUT = Path(__file__).resolve().parents[3]
COMMON = {"envpack", "envpack.common", "envpack.errors"} | {
    f"envpack.common.{name}" for name in ("locks", "places", "trust")
}
ARCHIVE = {"envpack.archive"} | {
    f"envpack.archive.{name}" for name in ("bytecode", "checks", "encoding", "index", "relocations")
}
STAGE = {"envpack.stage"} | {
    f"envpack.stage.{name}"
    for name in (
        "arrival", "compare", "delta", "existing", "extract", "frames", "gc", "marker", "recompile", "relocate", "repair",
        "root", "stager", "staging", "temporaries", "writers",
    )
}  # fmt: skip
GC = {"envpack.archive", "envpack.archive.index", "envpack.stage"} | {
    f"envpack.stage.{name}" for name in ("gc", "marker", "root", "temporaries")
}
CLI = {"envpack.cli"} | {f"envpack.common.{name}" for name in ("paths", "prefix", "units")}
# Each brings a dozen others, or more.
HEAVY = {"asyncio", "concurrent", "dataclasses", "inspect", "logging", "shutil", "subprocess", "tempfile"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = make_venv(tmp_path_factory.mktemp("imports") / "env")
    return pack(prefix, prefix.parent / "env.tar.zst", level=1).path


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        (
            "from envpack.cli import main; main(['stage', ARCHIVE, '--root', ROOT])",
            COMMON | ARCHIVE | STAGE | CLI,
        ),
        ("from envpack.cli import main; main(['gc', '--root', ROOT])", COMMON | CLI | GC),
        (
            "import envpack.stage.stager",
            (COMMON | ARCHIVE | STAGE) - {"envpack.stage.staging"},
        ),
        (
            "import envpack.archive.encoding",
            (COMMON | ARCHIVE)
            - {
                "envpack.archive.bytecode",
                "envpack.archive.relocations",
                "envpack.common.locks",
                "envpack.common.trust",
            },
        ),
        ("import envpack.common.locks", {"envpack", "envpack.common", "envpack.common.locks"}),
    ],
    ids=["stage", "gc", "stager", "encoding", "locks"],
)
def test_what_a_start_imports(code: str, allowed: set[str], archive: Path, tmp_path: Path) -> None:
    code = code.replace("ARCHIVE", repr(str(archive))).replace("ROOT", repr(str(tmp_path)))
    shown = "import sys; before = set(sys.modules)\n" + code + "\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", shown], capture_output=True, text=True, cwd=CHECKOUT, check=True
    )
    imported = set(done.stdout.splitlines()[-1].split())
    assert {name for name in imported if name.partition(".")[0] == "envpack"} == allowed
    tops = {name.partition(".")[0] for name in imported}
    assert {name for name in tops if name not in sys.stdlib_module_names} <= {"envpack", "zstandard"}
    assert not tops & HEAVY


def test_a_node_opens_few_files(archive: Path, tmp_path: Path) -> None:
    """Counted by the interpreter's own audit events, from its first import on; the stage's own files left out."""
    compileall.compile_dir(CHECKOUT / "envpack", quiet=1)  # as on a node: a new checkout has no bytecode yet
    opened = tmp_path / "opened"
    code = (
        "import sys; names = []\n"
        "def note(event, args):\n"
        "    if event in ('open', 'import'): names.append((event, args[0]))\n"
        "sys.addaudithook(note)\n"
        "from envpack.cli import main\n"
        f"main(['stage', {str(archive)!r}, '--root', {str(tmp_path)!r}])\n"
        f"open({str(opened)!r}, 'w').write('\\n'.join(f'{{e}} {{n}}' for e, n in names))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT, stdout=subprocess.DEVNULL)
    lines = opened.read_text().splitlines()
    files = [line for line in lines if line.startswith("open /") and os.fspath(tmp_path) not in line]
    assert len(files) < 100
    assert sum(line.endswith(archive.name) for line in files) == 1
