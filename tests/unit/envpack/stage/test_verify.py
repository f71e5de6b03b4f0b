"""`envpack verify`: what is damaged is named and remembered, and what the message says to type mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from envpack_trees import SITE, staged_tree

import envpack.stage.compare
import envpack.stage.marker
from envpack.archive.damage import is_damaged, mark
from envpack.archive.encoding import read_index
from envpack.errors import CorruptArchiveError, EnvpackError, StageFailedError
from envpack.stage.staging import stage
from envpack.stage.verify import verify

FILLER = Path("share", "filler")
DATA = SITE / "demo" / "data"
BYTECODE = SITE / "demo" / "__pycache__" / f"config.{sys.implementation.cache_tag}.pyc"


def test_what_is_whole(archives: list[Path], staged: list[Path]) -> None:
    of_archive, of_prefix = verify(archives[0]), verify(staged[0])
    assert of_archive == of_prefix._replace(path=archives[0])
    assert of_archive.files > 10 and of_archive.size_bytes > 300_000


def edit(path: Path, old: bytes, new: bytes) -> None:
    """Edit a file in place, and give it back its time, so that only its content tells."""
    info = path.stat()
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def type_remedy(error: EnvpackError) -> None:
    """Type the command at the end of a message, as a user does."""
    command = error.remedy.partition(": ")[2]
    python = f'{sys.executable} -m envpack "$@"'
    shell = f"envpack() {{ {python}; }}\n{command}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(["bash", "-c", shell], check=True, stdout=subprocess.DEVNULL, env=environment)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte": (lambda p: edit(p / "bin/demo", b"demo.VALUE", b"demo.value"), "bin/demo has another content"),
    "the prefix": (
        lambda p: edit(p / "bin/demo", b"!" + bytes(p)[:9], b"!" + b"/" * 9),
        "bin/demo has another content",
    ),
    "a size": (lambda p: (p / FILLER).write_bytes(b"short"), "share/filler has 5 bytes instead of 300000"),
    "a time": (lambda p: os.utime(p / FILLER), "share/filler has another modification time"),
    "a mode": (lambda p: (p / "bin/demo").chmod(0o644), "bin/demo has another mode"),
    "a folder's mode": (lambda p: (p / "bin").chmod(0o700), "bin has another mode"),
    "a lost file": (lambda p: (p / FILLER).unlink(), "share/filler is missing"),
    "a lost link": (lambda p: (p / "bin/python").unlink(), "bin/python is missing"),
    "a link's target": (
        lambda p: (p / "bin/python").unlink() or (p / "bin/python").symlink_to("x"),
        "bin/python points elsewhere",
    ),
    "a file for a link": (
        lambda p: (p / "bin/python").unlink() or (p / "bin/python").touch(),
        "bin/python points elsewhere",
    ),
    "a link for a file": (
        lambda p: (p / FILLER).unlink() or (p / FILLER).symlink_to("/etc/passwd"),
        "share/filler is not a file",
    ),
    "a fifo for a file": (
        lambda p: (p / FILLER).unlink() or os.mkfifo(p / FILLER),
        "share/filler is not a file",
    ),
    "a folder for a file": (
        lambda p: (p / "pyvenv.cfg").unlink() or (p / "pyvenv.cfg").mkdir(),
        "pyvenv.cfg is a folder",
    ),
    "a file for a folder": (
        lambda p: (p / DATA / "hollow").rmdir() or (p / DATA / "hollow").touch(),
        f"{DATA}/hollow is missing, or is not a folder",
    ),
    "a link for a folder": (
        lambda p: (p / DATA / "hollow").rmdir() or (p / DATA / "hollow").symlink_to("/etc"),
        f"{DATA}/hollow is missing, or is not a folder",
    ),
    "bytecode that the node made": (
        lambda p: (p / BYTECODE).write_bytes((p / BYTECODE).read_bytes()[:-1] + b"!"),
        f"{SITE}/demo/config.py has damaged bytecode",
    ),
    "a hard link's content": (
        lambda p: (p / DATA / "second-name").unlink() or (p / DATA / "second-name").write_text("mode"),
        f"{DATA}/second-name has 4 bytes instead of 10",
    ),
    "an extra file": (lambda p: (p / SITE / "extra.py").touch(), f"{SITE}/extra.py is not the environment's"),
    "an extra folder": (
        lambda p: (p / SITE / "extra/sub").mkdir(parents=True),
        f"{SITE}/extra is not the environment's",
    ),
    "an extra link": (lambda p: (p / "lib/x").symlink_to("/etc"), "lib/x is not the environment's"),
    "the index": (
        lambda p: edit(envpack.stage.marker.index_path(p), b"envpack-idx", b"envpack-xdi"),
        r"\.envpack/index does not end in an envpack index",
    ),
    "no index": (
        lambda p: envpack.stage.marker.index_path(p).unlink(),
        r"\.envpack/index: No such file or directory",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_prefix_is_mended_by_what_the_message_says(
    what: str, archives: list[Path], staged: list[Path], tmp_path: Path
) -> None:
    damage, message = DAMAGES[what]
    prefix = staged[0]
    whole = staged_tree(prefix)
    damage(prefix)
    with pytest.raises(StageFailedError, match=message) as raised:
        verify(prefix)
    assert str(prefix) in raised.value.problem and os.uname().nodename in raised.value.problem
    assert raised.value.remedy == (f"Stage the archive again: envpack stage {archives[0]} --root {tmp_path}")
    type_remedy(raised.value)
    assert staged_tree(prefix) == whole
    verify(prefix)
    assert stage(archives[0], tmp_path).reused


def test_ten_faults_are_named_and_all_are_counted(staged: list[Path]) -> None:
    for n in range(20):
        (staged[0] / f"extra-{n:02}").touch()
    (staged[0] / FILLER).unlink()
    with pytest.raises(
        StageFailedError, match=r"has 21 faults: share/filler is missing; .*extra-08 .*; …\. Stage"
    ):
        verify(staged[0])


def test_what_is_mended_otherwise_is_forgotten(
    archives: list[Path], staged: list[Path], tmp_path: Path
) -> None:
    edit(staged[0] / "bin/demo", b"demo.VALUE", b"demo.value")
    with pytest.raises(StageFailedError):
        verify(staged[0])
    edit(staged[0] / "bin/demo", b"demo.value", b"demo.VALUE")
    verify(staged[0])
    assert stage(archives[0], tmp_path).reused


def test_what_was_found_is_remembered_if_the_next_verify_is_interrupted(
    archives: list[Path], staged: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = staged[0] / "share" / "filler"
    info = path.stat()
    path.write_bytes(bytes(info.st_size))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    with pytest.raises(StageFailedError, match="has 1 fault"):
        verify(staged[0])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(envpack.stage.compare, "different_content", interrupt)
    with pytest.raises(KeyboardInterrupt):
        verify(staged[0])
    assert stage(archives[0], tmp_path).repaired == 1


def test_no_stage(staged: list[Path], tmp_path: Path) -> None:
    envpack.stage.marker.marker_path(staged[0]).unlink()
    with pytest.raises(StageFailedError, match="is not a staged prefix: it has no marker"):
        verify(staged[0])


def test_a_damaged_stage_whose_archive_is_gone(archives: list[Path], tmp_path: Path) -> None:
    """The message's command packs the environment again."""
    archive = tmp_path / "gone.tar.zst"
    archive.write_bytes(archives[2].read_bytes())
    prefix = stage(archive, tmp_path).prefix
    archive.unlink()
    (prefix / FILLER).unlink()
    with pytest.raises(StageFailedError) as raised:
        verify(prefix)
    source = read_index(archives[2]).prefix
    assert raised.value.remedy == (
        f'Stage the archive again: envpack stage "$(envpack pack --prefix {source})" --root {tmp_path}'
    )


def test_a_damaged_archive_is_marked(archives: list[Path], tmp_path: Path) -> None:
    archive = tmp_path / "env.tar.zst"
    data = bytearray(archives[2].read_bytes())
    data[1000] ^= 1
    archive.write_bytes(data)
    for check in (verify, lambda path: stage(path, tmp_path)):
        with pytest.raises(CorruptArchiveError) as raised:
            check(archive)
        assert is_damaged(archive)
        mark(archive).unlink()
        source = read_index(archives[2]).prefix
        assert raised.value.remedy == (
            f"Pack the environment again: envpack pack --force --prefix {source} --output {archive}"
        )
    type_remedy(raised.value)
    verify(archive)


def test_damage_that_cannot_be_noted(archives: list[Path], staged: list[Path], tmp_path: Path) -> None:
    edit(staged[0] / "bin/demo", b"demo.VALUE", b"demo.value")
    (staged[0] / ".envpack" / "damaged.new").mkdir()
    with pytest.raises(StageFailedError) as raised:
        verify(staged[0])
    assert raised.value.remedy == (
        f"Stage the archive again: envpack stage --force {archives[0]} --root {tmp_path}"
    )
    type_remedy(raised.value)
    verify(staged[0])
