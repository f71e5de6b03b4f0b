"""The process that stages the environment ends when the agent does, and removes what it has written."""

import json
import os
import subprocess
import sys

import pytest
from envpack_trees import make_venv, stages
from waiting import wait_until

from envpack.archive.damage import is_damaged
from envpack.archive.encoding import read_index
from envpack.errors import CorruptArchiveError
from envpack.pack.packing import pack
from envpack.stage import arrival
from mpiboot.agent.stage_child import stage_node

CHILD = "import sys; from mpiboot.agent import stage_child; sys.exit(stage_child.main())"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    prefix = make_venv(tmp_path_factory.mktemp("child") / "env")
    for number in range(3000):
        (prefix / "share" / str(number)).touch()
    (prefix / "zzz").write_bytes(os.urandom(3_000_000))
    return pack(prefix, prefix.parent / "env.tar.zst", level=1).path


def test_repeated_sigterm_does_not_end_the_removal(archive, tmp_path):
    """The batch system and the agent each send one."""
    index = read_index(archive)
    with (tmp_path / "growing").open("wb+") as file:
        # The last frame never arrives.
        frames = archive.read_bytes()[: index.archive_bytes - 1]
        file.write(arrival.head(index.raw) + index.raw + frames)
        file.flush()
        pipe, end = os.pipe()
        task = {
            "archive": str(archive), "root": str(tmp_path), "threads": 1, "pack_id": index.pack_id,
            "transport": "tree", "carried": None, "copy": [file.fileno(), pipe],
        }  # fmt: skip
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[file.fileno(), pipe],
        )
        child.stdin.write(json.dumps(task).encode())
        child.stdin.close()
        temporary = tmp_path / f"mpiboot-{os.geteuid()}"
        wait_until(lambda: list(temporary.glob(".tmp-*/share/2999")), "a stage that is half written", 30)
        while child.poll() is None:
            child.terminate()
        assert child.returncode == 1
        assert "frames" in json.loads(child.stdout.readline())
        assert child.stdout.read() == b""
        child.stdout.close()
        os.close(pipe)
        os.close(end)
    assert stages(tmp_path) == []


def test_a_copy_that_the_batch_system_carried(archive, tmp_path):
    """It is removed once it is staged; if it is damaged, the archive itself is not used again."""
    original, copy = tmp_path / "original", tmp_path / "copy"
    data = bytearray(archive.read_bytes())
    index = read_index(archive)
    original.touch()

    def stage_copy():
        return stage_node(str(original), str(tmp_path), 1, index.pack_id, "sbcast", str(copy), None)

    copy.write_bytes(data)
    assert (stage_copy()["transport"], copy.exists(), is_damaged(original)) == ("sbcast", False, False)
    data[10] ^= 1
    copy.write_bytes(data)
    (tmp_path / "other").mkdir()
    with pytest.raises(CorruptArchiveError):
        stage_node(str(original), str(tmp_path / "other"), 1, index.pack_id, "sbcast", str(copy), None)
    assert is_damaged(original)
