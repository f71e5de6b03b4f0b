from pathlib import Path

import pytest

from envpack.common.mounts import file_system, is_memory, is_shared

MOUNTS = """\
/dev/sda / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
server:/home /home nfs4 rw 0 0
lustre@tcp:/w /work\\040space lustre rw 0 0
/dev/sdb /home/local ext4 rw 0 0
me@host: /home/me/mnt fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "expected", "shared"),
    [
        ("/usr/bin/python3", ("ext4", "/"), False),
        ("/home/u/python", ("nfs4", "/home"), True),
        ("/home2/u", ("ext4", "/"), False),
        ("/home/local/u", ("ext4", "/home/local"), False),
        ("/work space/x", ("lustre", "/work space"), True),
        ("/home/me/mnt/x", ("fuse.sshfs", "/home/me/mnt"), True),
        ("/tmp", ("tmpfs", "/tmp"), False),
    ],
)
def test_file_systems(path: str, expected: tuple[str, str], shared: bool) -> None:
    kind = file_system(Path(path), MOUNTS)
    assert kind == expected
    assert is_shared(kind[0]) is shared


def test_memory() -> None:
    assert is_memory(file_system(Path("/tmp/x"), MOUNTS)[0])
    assert not is_memory(file_system(Path("/usr"), MOUNTS)[0])
