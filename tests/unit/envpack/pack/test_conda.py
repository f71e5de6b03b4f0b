"""A real conda environment is staged as conda-pack and conda-unpack would leave it, but for a short list."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import conda_pack
import conda_pack.prefixes
import pytest
from condachannel import PLACEHOLDER
from condaenv import build_conda_env, cached_env
from envpack_trees import SITE, XY, staged_tree, tree

from envpack.archive.encoding import read_index
from envpack.common.places import staged_prefix
from envpack.errors import PrefixTooLongError
from envpack.pack.packing import pack
from envpack.stage.staging import stage


@pytest.fixture(autouse=True)
def no_python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture(scope="module")
def env() -> Path:
    return cached_env(["pygments", "psutil"])


@pytest.fixture(scope="module")
def archive(env: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(env, tmp_path_factory.mktemp("conda") / "env.tar.zst").path


@pytest.fixture(scope="module")
def staged(archive: Path) -> Path:
    """The environment, staged; only to be read."""
    return stage(archive, archive.parent).prefix


def unpacked_by_conda(env: Path, prefix: Path, folder: Path) -> Path:
    """Return what conda-pack and conda-unpack make of an environment at `prefix`, moved away from there."""
    conda_pack.pack(prefix=str(env), output=str(folder / "conda.tar"), ignore_editable_packages=True)
    prefix.mkdir(parents=True)
    prefix.parent.chmod(0o700)
    subprocess.run(["tar", "-xf", folder / "conda.tar", "-C", prefix], check=True)
    subprocess.run([prefix / "bin" / "python", prefix / "bin" / "conda-unpack"], check=True)
    prefix.rename(folder / "unpacked")
    return folder / "unpacked"


def without_bytecode(found: dict[bytes, tuple[object, ...]]) -> dict[bytes, tuple[object, ...]]:
    """Leave out `.pyc` files, and times: conda-unpack gives what it writes the time of the day."""
    return {
        path: entry[:3]
        for path, entry in found.items()
        if b"__pycache__" not in path and not path.endswith(b".pyc")
    }


def test_the_trees_are_equal(env: Path, archive: Path, tmp_path: Path) -> None:
    index = read_index(archive)
    prefix = staged_prefix(tmp_path, index.pack_id, index.name)
    theirs = without_bytecode(tree(unpacked_by_conda(env, prefix, tmp_path)))
    ours = without_bytecode(staged_tree(stage(archive, tmp_path).prefix))
    # Nothing is left to be unpacked.
    del theirs[b"bin/conda-unpack"], theirs[b"bin/conda_unpack_progress.py"]
    changed = [path for path in theirs if path.startswith(b"bin/") and theirs[path] != ours[path]]
    scripts = [path for path in changed if theirs[path][1].startswith(b"#!/usr/bin/env python")]  # type: ignore
    assert {b"bin/mpiboot-fixture", b"bin/pygmentize"} <= set(scripts)
    for path in scripts:
        # The staged interpreter, whatever PATH is; conda-unpack leaves the first in PATH.
        kind, content, mode = theirs[path]
        assert isinstance(content, bytes)
        theirs[path] = (
            kind,
            content.replace(b"#!/usr/bin/env ", b"#!" + os.fsencode(prefix) + b"/bin/", 1),
            mode,
        )
    for path in [path for path in theirs if re.fullmatch(rb"conda-meta/.*\.json", path)]:
        # conda-pack blanks some fields.
        theirs[path] = ("file", (env / os.fsdecode(path)).read_bytes(), *theirs[path][2:])
    for path in [path for path in ours if re.fullmatch(rb"bin/python[\d.]*-config", path)]:
        # conda-unpack skips all that is called bin/python*, and leaves the placeholder in it.
        kind, content, mode = theirs[path]
        assert isinstance(content, bytes)
        theirs[path] = (kind, content.replace(PLACEHOLDER.encode(), os.fsencode(prefix)), mode)
    assert ours == theirs
    assert ours[b"share/mpiboot-fixture/prefix.bin"] == theirs[b"share/mpiboot-fixture/prefix.bin"]
    assert PLACEHOLDER.encode() not in ours[b"share/mpiboot-fixture/prefix.bin"][1]  # type: ignore[operator]


def naming(prefix: Path, found: dict[bytes, tuple[object, ...]]) -> list[bytes]:
    """Return what names a prefix, in its content or as a link.

    Strings in `.pyc` files do not count, nor do conda's records, which stay as they are: nobody runs them.
    """
    text = os.fsencode(prefix)
    return [
        path
        for path, entry in found.items()
        if not path.endswith(b".pyc") and not path.startswith(b"conda-meta/") and text in b"".join(entry[1:2])  # type: ignore
    ]


def test_nothing_names_the_source_prefix(env: Path, staged: Path) -> None:
    assert naming(env, staged_tree(staged)) == []


def test_it_runs_from_there(staged: Path) -> None:
    prefix = staged
    bare = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [prefix / "bin" / "mpiboot-fixture"], env=bare, check=True, capture_output=True, text=True
    )
    assert done.stdout == f"{prefix}\n"
    done = subprocess.run(
        [prefix / "bin" / "python", "-c", "import psutil, pygments, sysconfig, sys; print(psutil.__file__, sys.prefix);"
         "print(sysconfig.get_config_vars())"],
        env=bare, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == f"{prefix / SITE}/psutil/__init__.py {prefix}"
    assert PLACEHOLDER not in done.stdout
    script = f". {prefix}/bin/activate && echo $MPIBOOT_FIXTURE_PREFIX $CONDA_PREFIX"
    done = subprocess.run(["bash", "-c", script], env=bare, check=True, capture_output=True, text=True)
    assert done.stdout == f"{prefix} {prefix}\n"


def test_all_bytecode_is_valid(staged: Path) -> None:
    prefix = staged
    checked = 0
    for source in (prefix / "lib" / XY).rglob("*.py"):
        pyc = Path(importlib.util.cache_from_source(os.fspath(source)))
        if not pyc.exists():
            with pytest.raises((SyntaxError, ValueError)):
                compile(source.read_bytes(), os.fspath(source), "exec")
            continue
        found = pyc.read_bytes()[:16]
        info = source.stat()
        size, seconds = info.st_size.to_bytes(4, "little"), int(info.st_mtime).to_bytes(4, "little")
        assert found == importlib.util.MAGIC_NUMBER + bytes(4) + seconds + size, source
        checked += 1
    assert checked > 600


@pytest.mark.skipif(
    sys.base_prefix == "/usr", reason="no file of a system's Python names a prefix of its own"
)
def test_the_relocated_source_is_what_its_bytecode_says(staged: Path) -> None:
    prefix = staged
    (data,) = (prefix / "lib" / XY).glob("_sysconfigdata*.py")
    assert os.fsencode(prefix) in data.read_bytes()
    code = Path(importlib.util.cache_from_source(os.fspath(data))).read_bytes()
    assert os.fsencode(prefix) in code and PLACEHOLDER.encode() not in code


def test_a_root_longer_than_the_placeholder(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / ("x" * 200) / ("y" * 100)
    root.mkdir(parents=True)
    with pytest.raises(
        PrefixTooLongError, match=r"has room for 255. Choose a staging root with a shorter path"
    ):
        stage(archive, root)
    assert list(root.iterdir()) == []


def test_not_packed_again(env: Path, archive: Path) -> None:
    assert pack(env, archive).reused


# ---- environments that are not as conda left them


@pytest.fixture
def own_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("own")
    yield build_conda_env(folder / "env")
    shutil.rmtree(folder)


def test_an_environment_that_changed_in_many_ways(own_env: Path, tmp_path: Path) -> None:
    """One environment, as it takes seconds to build one."""
    output = tmp_path / "a.tar.zst"
    first = pack(own_env, output)
    assert first.warnings == ()
    no_package_cache(own_env, output, first.pack_id)
    what_is_left_out(own_env, output)
    changed_files(own_env, output, tmp_path)
    missing_files(own_env, output)
    editable_install(own_env, output, tmp_path)


def no_package_cache(env: Path, output: Path, pack_id: str) -> None:
    """`conda clean` was run, or another user's cache cannot be read: the environment's own bytes are packed."""
    shutil.rmtree(env.parent / "env-pkgs")
    output.unlink()
    again = pack(env, output)
    assert (again.pack_id, again.warnings) == (pack_id, ())


def what_is_left_out(env: Path, output: Path) -> None:
    """A base environment has others, and the package cache, below it."""
    (env / "envs" / "other" / "conda-meta").mkdir(parents=True)
    (env / "pkgs").mkdir()
    (env / "pkgs" / "file").touch()
    result = pack(env, output, force=True)
    assert result.warnings == ("not packed, as conda keeps no part of an environment in them: envs, pkgs",)
    assert not any(path.startswith((b"envs", b"pkgs")) for path in read_index(output).paths)
    shutil.rmtree(env / "envs")
    shutil.rmtree(env / "pkgs")


def changed_files(env: Path, output: Path, folder: Path) -> None:
    """Edits are what is packed: of a module, of a text with a placeholder, and of a binary by as many bytes."""
    edits = {
        f"lib/{XY}/abc.py": lambda content: content + b"# mine\n",
        "etc/conda/activate.d/mpiboot-fixture.sh": lambda content: content + b"# mine\n",
        "share/mpiboot-fixture/prefix.bin": lambda content: content[:-1] + b"\3",
    }
    kept = {name: (env / name).read_bytes() for name in edits}
    for name, edit in edits.items():
        (env / name).unlink()  # its other name is in the package cache
        (env / name).write_bytes(edit(kept[name]))
    (warning,) = pack(env, output).warnings
    for name in edits:
        assert name in warning
    staged = stage(output, folder).prefix
    assert (staged / f"lib/{XY}/abc.py").read_bytes().endswith(b"# mine\n")
    script = "etc/conda/activate.d/mpiboot-fixture.sh"
    assert (staged / script).read_text() == f'export MPIBOOT_FIXTURE_PREFIX="{staged}"\n# mine\n'
    expected = f"\0\1{PLACEHOLDER}/share\0{PLACEHOLDER}\0\3".encode()
    expected = conda_pack.prefixes.binary_replace(expected, PLACEHOLDER.encode(), os.fsencode(staged))
    assert (staged / "share/mpiboot-fixture/prefix.bin").read_bytes() == expected
    assert naming(env, staged_tree(staged)) == []
    shutil.rmtree(staged)
    for name, content in kept.items():
        (env / name).write_bytes(content)


def missing_files(env: Path, output: Path) -> None:
    """pip has removed them, or somebody else."""
    kept = {}
    for name in ("bin/mpiboot-fixture", f"lib/{XY}/this.py", f"lib/{XY}/antigravity.py"):
        kept[name] = (env / name).rename(env.parent / name.replace("/", "-"))
    (warning,) = pack(env, output).warnings
    version = sys.version.split()[0]
    assert warning == (
        f"3 files of conda packages are missing in {env}; it was packed without them: bin/mpiboot-fixture "
        f"(mpiboot-fixture 1.0), lib/{XY}/antigravity.py (python {version}), lib/{XY}/this.py (python {version})"
    )
    for name, path in kept.items():
        path.rename(env / name)


def editable_install(env: Path, output: Path, folder: Path) -> None:
    (folder / "project").mkdir()
    (folder / "project" / "mine.py").write_text("")
    info = env / SITE / "mine-1.dist-info"
    info.mkdir()
    (info / "direct_url.json").write_text(
        json.dumps({"url": f"file://{folder}/project", "dir_info": {"editable": True}})
    )
    (env / SITE / "__editable__.mine.pth").write_text(f"{folder}/project\n")
    result = pack(env, output)
    assert len(result.warnings) == 1 and f"mine ({folder}/project)" in result.warnings[0]
    staged = stage(output, folder).prefix
    assert (staged / SITE / "__editable__.mine.pth").read_text() == f"{folder}/project\n"
    shutil.rmtree(staged)
