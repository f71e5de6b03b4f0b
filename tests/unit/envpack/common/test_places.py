import os
from pathlib import Path

from envpack.common import places


def test_the_two_variables_and_their_defaults() -> None:
    assert places.default_home({"MPIBOOT_HOME": "/w"}) == Path("/w")
    assert places.default_home({"MPIBOOT_HOME": ""}) == Path.home() / ".mpiboot"
    assert places.default_stage_root({"MPIBOOT_STAGE_ROOT": "/scratch"}) == Path("/scratch")
    assert places.default_stage_root({}) == Path("/tmp")


def test_the_users_folder_on_a_node() -> None:
    assert places.user_folder("/scratch/x/..") == Path(f"/scratch/mpiboot-{os.geteuid()}")
