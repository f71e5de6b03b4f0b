"""Paths into the source prefix become paths into the staged one, wherever they stand in a value."""

from pathlib import Path

import pytest

from mpiboot.protocol.relocation import Relocation

SOURCE, STAGED = "/home/a/env", "/tmp/mpiboot-1/env-12"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (SOURCE, STAGED),
        (f"{SOURCE}/", f"{STAGED}/"),
        (f"{SOURCE}/share/proj", f"{STAGED}/share/proj"),
        (f"/a:{SOURCE}/lib:{SOURCE}", f"/a:{STAGED}/lib:{STAGED}"),
        (f"-O2 -I{SOURCE}/include -L{SOURCE}/lib -Wl,-rpath,{SOURCE}/lib", None),
        (f"-isystem {SOURCE}/include --sysroot={SOURCE}", None),
        (f'{{"proj": "{SOURCE}/share", "x": [\'{SOURCE}\']}}', None),
        (f"file://{SOURCE}/a file://localhost{SOURCE}/b sqlite:///{SOURCE}/c.db", None),
        (f"-ffile-prefix-map={SOURCE}/src=/usr/src", None),
        (f"A={SOURCE}/a;B=({SOURCE})", None),
        # Where it is no path of its own:
        (
            f"{SOURCE}2:{SOURCE}-old:{SOURCE}.bak:{SOURCE}_x",
            f"{SOURCE}2:{SOURCE}-old:{SOURCE}.bak:{SOURCE}_x",
        ),
        (f"/backup{SOURCE}/share", f"/backup{SOURCE}/share"),
        (f"https://host{SOURCE}/x s3://bucket{SOURCE}", f"https://host{SOURCE}/x s3://bucket{SOURCE}"),
        ("", ""),
    ],
)
def test_values(value, expected):
    found = Relocation(Path(SOURCE), Path(STAGED), {}).value(value)
    assert found == (value.replace(SOURCE, STAGED) if expected is None else expected)


def test_a_short_prefix_changes_no_other_path():
    relocation = Relocation(Path("/env"), Path(STAGED), {})
    value = "/usr/bin/env:/env/bin:/opt/env:-I/env/include:file:///env/x:https://host/env"
    assert relocation.value(value) == (
        f"/usr/bin/env:{STAGED}/bin:/opt/env:-I{STAGED}/include:file://{STAGED}/x:https://host/env"
    )


def test_without_a_stage_nothing_changes():
    relocation = Relocation(Path(SOURCE), Path(SOURCE), {"X": f"{SOURCE}/bin"})
    assert relocation.value(f"{SOURCE}/share") == f"{SOURCE}/share"


def test_each_name_of_the_prefix_is_found(tmp_path):
    source = tmp_path / "real" / "env"
    source.mkdir(parents=True)
    (tmp_path / "current").symlink_to(source)
    (tmp_path / "mount").symlink_to(source.parent)
    environ = {
        "PATH": f"{tmp_path}/current/bin:/usr/bin",
        "PROJ_DATA": f"{tmp_path}/mount/env/share/proj",
        "HOME": str(tmp_path / "real"),
        "OTHER": str(tmp_path / "gone/env"),
    }
    relocation = Relocation(tmp_path / "current", Path(STAGED), environ)
    assert {name: relocation.value(value) for name, value in environ.items() if name != "HOME"} == {
        "PATH": f"{STAGED}/bin:/usr/bin",
        "PROJ_DATA": f"{STAGED}/share/proj",
        "OTHER": str(tmp_path / "gone/env"),
    }
    assert relocation.value(f"{source}/lib") == f"{STAGED}/lib"


def test_a_path_with_a_tilde(tmp_path):
    relocation = Relocation(Path("/home/a/env"), Path(STAGED), {"HOME": "/home/a"})
    assert relocation.value("~/env/share:~/env2:~") == f"{STAGED}/share:~/env2:~"


def test_what_is_not_in_the_stage_stays_where_it_is(tmp_path):
    source, staged = tmp_path / "env", tmp_path / "staged"
    for folder in (source / "share/large", source / "share/proj", staged / "share/proj"):
        folder.mkdir(parents=True)
    relocation = Relocation(source, staged, {})
    assert relocation.value(f"{source}/share/large:{source}/share/proj:{source}/share/none") == (
        f"{source}/share/large:{staged}/share/proj:{staged}/share/none"
    )
