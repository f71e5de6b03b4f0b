import logging
import os
from types import SimpleNamespace

import pytest

from mpiboot.boot import staging
from mpiboot.config import Config
from mpiboot.errors import EnvironmentUnfitError, StageError, UsageError
from mpiboot.protocol.events import EventLog, parse_events

MIB = 1024**2


@pytest.mark.parametrize(
    ("asked", "n_nodes", "n_lacking", "size_bytes", "expected"),
    [
        ("auto", 2, 2, 300 * MIB, "direct"),
        ("auto", 100, 13, 300 * MIB, "direct"),
        ("auto", 100, 14, 300 * MIB, "tree"),
        ("auto", 2, 2, 3000 * MIB, "tree"),
        ("auto", 100, 1, 9000 * MIB, "direct"),
        ("sbcast", 2, 1, MIB, "sbcast"),
        ("tree", 2, 1, MIB, "tree"),
        ("tree", 2, 0, MIB, "direct"),
        ("tree", 1, 1, MIB, "direct"),
    ],
)
def test_transport(asked, n_nodes, n_lacking, size_bytes, expected):
    assert staging.choose_transport(asked, "slurm", n_nodes, n_lacking, size_bytes) == expected


def test_another_batch_systems_transport_is_refused():
    with pytest.raises(
        UsageError, match=r"--transport sbcast: a job of this machine cannot use it\. Use --transport"
    ):
        staging.choose_transport("sbcast", "local", 1, 1, MIB)


def test_a_batch_systems_own_transport():
    assert staging.choose_transport("sbcast", "slurm", 2, 2, MIB) == "sbcast"


@pytest.fixture
def packs(tmp_path):
    """A context whose environment's Python is a shell script in place of `envpack pack`."""
    python = tmp_path / "my env/bin/python"
    python.parent.mkdir(parents=True)
    events = EventLog(tmp_path / "events.jsonl")

    def context(script, **options):
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        directory = SimpleNamespace(path=tmp_path / "home/jobs/local-h-1")
        return SimpleNamespace(
            config=Config(**options),
            directory=directory,
            source=python.parents[1],
            allocation=None,
            events=events,
        )

    yield context
    events.close()


def test_a_job_that_packs_logs_what_pack_says_as_it_says_it(packs, tmp_path, caplog):
    """Here it goes on only once boot has logged its first line."""
    os.mkfifo(tmp_path / "heard")
    context = packs(
        f"echo 'envpack: waiting for a lock' >&2; read line < '{tmp_path}/heard'; echo \"$MPIBOOT_HOME\" \"$@\"",
        pack_exclude=("lib/*.a", "tests"),
    )

    class Hears(logging.Handler):
        def emit(self, record):
            if "waiting" in record.getMessage():
                (tmp_path / "heard").write_text("heard\n")

    staging.logger.addHandler(handler := Hears())
    try:
        with caplog.at_level("INFO"):
            printed = str(staging.find_archive(context))
    finally:
        staging.logger.removeHandler(handler)
    command = f"-I -m envpack pack --prefix {context.source} --exclude=lib/*.a --exclude=tests"
    assert printed == f"{tmp_path}/home {command}"
    [event] = parse_events((tmp_path / "events.jsonl").read_bytes())
    assert (event["event"], event["step"]) == ("step", "pack")
    assert caplog.messages == [
        f"packing {context.source} (submit does so beforehand)",
        "envpack: waiting for a lock",
    ]


def test_an_environment_that_cannot_be_packed_is_named_with_pack_s_words(packs):
    context = packs("echo 'envpack: cannot read lib/a' >&2; exit 1", pack_exclude=("*.a",))
    with pytest.raises(EnvironmentUnfitError) as error:
        staging.find_archive(context)
    source = context.source
    assert str(error.value) == (
        f"{source} could not be packed: envpack: cannot read lib/a. Try it by hand: "
        f"'{source}/bin/python' -I -m envpack pack --prefix '{source}' '--exclude=*.a'"
    )


def test_an_archive_without_its_index_is_an_error_with_the_command_that_packs(packs, tmp_path):
    (tmp_path / "archive").write_bytes(b"x" * 1000)
    context = packs("")
    with pytest.raises(StageError) as error:
        staging.agent_orders(context, tmp_path / "archive")
    assert str(tmp_path / "archive") in error.value.problem
    assert error.value.remedy == (
        "Pack the environment, and submit the job again: "
        f"'{context.source}/bin/python' -I -m envpack pack --prefix '{context.source}'"
    )


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"reused": True}, "reused 1 GiB in 2.0 s"),
        ({"linked": 31000}, "staged 1 GiB in 2.0 s; 31000 files linked from an older copy"),
        (
            {"repaired": 2, "evicted": ["env-1", "env-2"]},
            "staged 1 GiB in 2.0 s; 2 damaged or lost files put back; removed for want of room: env-1, env-2",
        ),
    ],
)
def test_what_staging_did_on_a_node(result, words):
    usual = {
        "reused": False,
        "size_bytes": 1024 * MIB,
        "seconds": 2.0,
        "linked": 0,
        "repaired": 0,
        "evicted": [],
    }
    assert staging.show_stage({**usual, **result}) == words
