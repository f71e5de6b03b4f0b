"""What runs on the nodes is what the environment is now: edits, damage, packages elsewhere, files that are left out."""

import json
import shutil
from pathlib import Path

import pip
import pytest
from environments import wheel

pytestmark = pytest.mark.cluster

SMALL = ("--nodes", "2", "--workers-per-node", "1", "--cpus-per-worker", "1", "--interface", "ib0")
# Prints what `edited.VALUE` is in the command and on the workers, and the environment that a command in the job means.
SCRIPT = """
import importlib, json, os, subprocess, sys
from distributed import Client

def look(module):
    found = importlib.import_module(module)
    return [found.VALUE, found.__file__]

if __name__ == "__main__":
    with Client() as client:
        seen = [look(sys.argv[1]), *client.run(look, sys.argv[1]).values()]
    submit = ["mpiboot", "submit", "--dry-run", "--interface", "ib0"]
    line = subprocess.run(submit, capture_output=True, text=True).stdout.split()
    print("seen:", json.dumps([seen, sys.prefix, [word for word in line if word.startswith("--env=")]]))
"""


@pytest.fixture(autouse=True)
def edited(alice):
    """A module in the environment, as a user edits it."""
    [site] = alice.home.glob("env/lib/python3.*/site-packages")
    module = site / "edited.py"
    alice.writes("look.py", SCRIPT)

    def edit(text):
        alice.writes(str(module.relative_to(alice.home)), text)

    edit("VALUE = 1\n")
    yield edit
    module.unlink()


def runs(alice, module, *options, **variables):
    """Run the script as a batch job; return what it has printed, and what submit said."""
    done = alice.types(
        *("mpiboot", "submit", *SMALL, *options, "--wait", "--", "python", "look.py", module),
        check=False,
        timeout_s=240,
        **variables,
    )
    output = alice.types("cat", f"slurm-{done.stdout.strip()}.out").stdout
    assert done.returncode == 0, done.stderr + output
    [line] = [line for line in output.splitlines() if line.startswith("seen: ")]
    return json.loads(line.removeprefix("seen: ")), done.stderr


def test_tasks_see_an_edit(alice, edited):
    """Of the same size, of a file that the nodes have staged before; a command in the job means the source."""
    for value in (1, 2):
        edited(f"VALUE = {value}\n")
        (seen, prefix, environment), _ = runs(alice, "edited")
        assert prefix.startswith(f"/tmp/mpiboot-{alice.uid}/env-")
        assert [found for found, _ in seen] == [value] * 3
        assert all(path.startswith(f"{prefix}/lib/") for _, path in seen)
        assert environment == [f"--env={alice.cluster.env}"]


@pytest.fixture
def installed(alice):
    """A module that alice's pip has installed into the environment; pip removes it in the end."""
    (alice.home / "wheels").mkdir()
    made = wheel(alice.home / "wheels", "installed_demo", "1.0", "VALUE = 1")
    shutil.make_archive(str(alice.home / "wheels/pip"), "zip", Path(pip.__file__).parents[1], "pip")
    alice_pip = ("env", "PYTHONPATH=/home/alice/wheels/pip.zip", "python", "-m", "pip", "-q")
    alice.types(*alice_pip, "install", "--no-index", f"/home/alice/wheels/{made.name}")
    [module] = alice.home.glob("env/lib/python3.*/site-packages/installed_demo/__init__.py")
    yield module
    alice.types(*alice_pip, "uninstall", "-y", "installed_demo")
    shutil.rmtree(alice.home / "wheels")


def test_an_edit_in_place_of_what_pip_installed(alice, installed):
    """Tasks see it; the next job finds it staged."""
    alice.types("envpack", "pack")
    with installed.open("r+") as file:
        file.write("VALUE = 2")
    for reused in (False, True):
        (seen, _, _), _ = runs(alice, "installed_demo")
        assert [value for value, _ in seen] == [2] * 3
        newest = max(alice.jobs().iterdir(), key=lambda path: path.stat().st_mtime)
        events = map(json.loads, (newest / "events.jsonl").read_text().splitlines())
        staged = {event["host"]: event["reused"] for event in events if event["event"] == "staged"}
        assert staged == {"node1": reused, "node2": reused}


def test_packages_elsewhere_are_found_and_named(alice):
    alice.writes("module/elsewhere.py", "VALUE = 'of a module'\n")
    (seen, _, _), said = runs(alice, "elsewhere", PYTHONPATH="/home/alice/module")
    assert seen == [["of a module", "/home/alice/module/elsewhere.py"]] * 3
    assert "/home/alice/module" in said and "not packed" in " ".join(said.split())


def test_a_venv_that_has_all_its_packages_from_its_base(alice):
    """mpiboot and dask-mpi, too; they are staged with the base interpreter."""
    alice.types("python", "-m", "venv", "--without-pip", "--system-site-packages", "over")
    try:
        (seen, prefix, _), _ = runs(alice, "edited", "--env", "/home/alice/over")
    finally:
        alice.types("rm", "-r", "over")
    assert prefix.startswith(f"/tmp/mpiboot-{alice.uid}/over-")
    assert [value for value, _ in seen] == [1] * 3
    assert all(path.startswith(f"{prefix}/.envpack-base/lib/") for _, path in seen), seen


def test_what_is_left_out_is_shown_and_not_staged(alice):
    alice.writes("env/share/large/data", "x" * 1000)
    try:
        (_, prefix, _), said = runs(alice, "edited", "--pack-exclude", "share/large")
    finally:
        alice.types("rm", "-r", "env/share/large")
    assert "left out by --pack-exclude: 1 paths" in said and "share/large" in said
    assert alice.types("ls", f"{prefix}/share", node=2).stdout.split().count("large") == 0


@pytest.mark.parametrize("transport", ["direct", "tree", "sbcast"])
def test_the_submit_after_a_damaged_archive_mends_it(alice, edited, transport):
    edited(f"VALUE = 'for {transport}'\n")
    packed = json.loads(alice.types("envpack", "pack", "--json").stdout)
    archive = alice.home / packed["path"].removeprefix("/home/alice/")
    data = bytearray(archive.read_bytes())
    data[10] ^= 1
    archive.write_bytes(data)
    for node in (1, 2):  # otherwise nothing but the changed file would be read from the archive
        alice.types("sh", "-c", f"rm -rf /tmp/mpiboot-{alice.uid}/env-*", node=node)
    options = ("--transport", transport)
    failed = alice.types(
        *("mpiboot", "submit", *SMALL, *options, "--wait", "--", "python", "look.py", "edited"),
        check=False,
        timeout_s=240,
    )
    output = alice.types("cat", f"slurm-{failed.stdout.strip()}.out").stdout
    assert failed.returncode == 1 and " is damaged: " in output, output
    (seen, _, _), said = runs(alice, "edited", *options)
    assert "packed in" in said
    assert [found for found, _ in seen] == [f"for {transport}"] * 3


def test_doctor_shows_what_the_staged_copies_take(alice):
    shown = alice.types("mpiboot", "doctor", "--interface", "ib0", "--job-test", timeout_s=240).stdout
    words = " ".join(shown.split())
    for node in ("node1", "node2"):
        line = words.partition(f"{node}: staging root: ")[2].partition(" ok ")[0]
        assert " staged copies take " in line and "are in use" in line, shown
