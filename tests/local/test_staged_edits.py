"""An environment is packed and staged, edited in every way, packed and staged again: the copy has the edits.

Both times in the same home and staging root, so that the second archive and the second copy are made from the first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import environments
import pytest
from condaenv import pip_install
from environments import SITE, Environment, uv_install
from envpackcommand import envpack
from treewalk import Trees, contents

OLDER = "pygments<2.18"


def edit_in_place(path: Path, old: bytes, new: bytes) -> None:
    """Change bytes of a file; its size and modification time stay as they were."""
    data = path.read_bytes()
    assert old in data and len(old) == len(new), path
    before = path.stat()
    with path.open("r+b") as file:
        file.write(data.replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(one: Path, other: Path) -> None:
    third = one.with_name("third")
    one.rename(third)
    other.rename(one)
    third.rename(other)


def edit_everything(prefix: Path) -> None:
    site = prefix / SITE
    edit_in_place(site / "pygments/lexer.py", b"Base lexer", b"Edited one")
    edit_in_place(prefix / "bin/pygmentize", b"main", b"MAIN")
    library = next((site / "psutil").glob("*.so"))
    edit_in_place(library, library.read_bytes()[-8:], b"EDITED!!")
    swap(site / "same/one.py", site / "same/two.py")
    shutil.copy2(site / "same/source.py", site / "same/target.py")
    (site / "same/mode.py").chmod(0o600)
    (site / "same/link").unlink()
    (site / "same/link").symlink_to("two.py")
    (site / "same/renamed.py").rename(site / "same/new-name.py")
    (site / "same/deleted.py").unlink()
    shutil.rmtree(site / "same/deleted-folder")
    (site / "same/new-folder").mkdir()
    (site / "same/new-folder/new.py").write_text(f"VALUE = {str(prefix)!r}\n")
    (site / "same/file").unlink()
    (site / "same/file").mkdir()
    shutil.rmtree(site / "same/folder")
    (site / "same/folder").write_text("a file\n")
    (site / "same/touched.py").touch()
    with (site / "same/grown.py").open("a") as file:
        file.write("MORE = 2\n")
    with (site / "same/large").open("r+b") as file:
        file.seek(9_000_001)
        file.write(b"edited")


def add_files(prefix: Path) -> None:
    same = prefix / SITE / "same"
    for folder in ("deleted-folder", "folder"):
        (same / folder).mkdir(parents=True)
        (same / folder / "file.py").write_text("VALUE = 1\n")
    for number, name in enumerate(
        ("one", "two", "source", "target", "mode", "renamed", "deleted", "touched", "grown")
    ):
        (same / f"{name}.py").write_text(f"VALUE = {number}\n")
        os.utime(same / f"{name}.py", (1e9, 1e9))
    (same / "file").write_text("file\n")
    (same / "link").symlink_to("one.py")
    (same / "large").write_bytes(os.urandom(1000) * 20_000)


@pytest.mark.parametrize("build", [environments.conda, environments.venv_of_conda])
def test_every_edit_reaches_the_copy(
    build: Callable[[Path], Environment], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("t")
    environment = build(folder)
    prefix, base = environment.prefix, environment.base
    add_files(prefix)
    (folder / "root").mkdir()
    home = ["env", f"MPIBOOT_HOME={folder / 'home'}"]

    def packs_and_stages() -> tuple[dict[str, object], dict[str, object], list[str]]:
        packed = envpack("pack", "--prefix", prefix, by=home)
        staged = envpack("stage", packed["path"], "--root", folder / "root")
        copy = Trees(prefix, Path(staged["prefix"]), base=base, warnings=packed["warnings"])
        return packed, staged, copy.differences()

    first, first_staged, differences = packs_and_stages()
    assert differences == []
    first_copy = Path(str(first_staged["prefix"]))
    before = contents(first_copy)
    shutil.copytree(prefix, folder / "as it was", symlinks=True)

    edit_everything(prefix)
    if base:
        edit_in_place(base / SITE.replace("site-packages", "json/decoder.py"), b"JSON", b"json")
    second, _, differences = packs_and_stages()
    assert differences == []
    assert second["pack_id"] != first["pack_id"]
    assert second["frames_copied"]  # so it was made from the first archive
    assert {path for path, content in contents(first_copy).items() if before[path] != content} == set()

    install(prefix, OLDER)
    third, _, differences = packs_and_stages()
    assert differences == []
    assert len({str(packed["pack_id"]) for packed in (first, second, third)}) == 3


def install(prefix: Path, requirement: str) -> None:
    if (prefix / "conda-meta").is_dir():
        pip_install(prefix, [requirement])
    else:
        uv_install(prefix, requirement)
