"""Every option, from every place where it may stand, to the submit command's arguments and to boot: nothing is changed.

The options are those of `config.OPTIONS`, and each kind has its values here, so a new option is covered as it is added.
"""

import os
import subprocess
from pathlib import Path
from unittest import mock

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from envpack.common.units import parse_size_bytes
from mpiboot import config as configuration
from mpiboot.batch.local.submission import Local
from mpiboot.batch.slurm.submission import Slurm
from mpiboot.cli.main import main
from mpiboot.client import settings
from mpiboot.config import OPTIONS, options_in
from mpiboot.errors import UsageError
from mpiboot.kinds import (
    COUNT,
    DURATION,
    FLAG,
    ORIGINS,
    PATH,
    PORT,
    PORT_RANGE,
    SIZE,
    TEXT,
    VARIABLE,
    WALLTIME,
)
from mpiboot.option import BOOT, ENVIRONMENT, FILE, PYTHON, SUBMIT

SCRIPT = Path(__file__).resolve().parents[2] / "jobscripts/slurm.sh"

# What an operating system takes as an argument.
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
texts = words.filter(bool)
# As a user types them on a command line.
VALUES = {
    TEXT: texts,
    PATH: texts.filter(lambda text: "$" not in text).map("/{}".format),
    VARIABLE: st.builds("{}={}".format, st.from_regex(r"\AV_[A-Za-z0-9_]*\Z"), words),
    COUNT: st.integers(1, 10**6).map(str),
    FLAG: st.sampled_from(["true", "True", "false"]),
    SIZE: st.builds("{}{}".format, st.integers(0, 999), st.sampled_from(["K", "MiB", "G", "T", "", "B"]))
    | st.floats(1, 1e6).map("{:f}G".format),
    ORIGINS: st.from_regex(r"\Ahttps?://[a-z0-9.-]*[a-z0-9](:[0-9]{1,4})?\Z"),
    DURATION: st.floats(0, 1e9, allow_subnormal=False).map(repr)
    | st.builds("{} {}".format, st.integers(0, 1000), st.sampled_from(["s", "min", "days", "ms"])),
    PORT: st.integers(1024, 65535).map(str),
    PORT_RANGE: st.lists(st.integers(1024, 65535), min_size=2, max_size=2).map(
        lambda ports: "{}:{}".format(*sorted(ports))
    ),
    WALLTIME: st.from_regex(r"\A([0-9]{1,9}-)?[0-9]{1,3}(:[0-9]{2}){0,2}\Z", alphabet="0123456789-:"),
}
# The submit command understands some of these arguments.
OF_OPTION = {"batch_arg": words.map("--constraint={}".format)}


def values_of(option):
    kind = option.kind
    value = OF_OPTION.get(option.name, st.sampled_from(kind.choices) if kind.choices else VALUES.get(kind))
    return st.lists(value, min_size=1) if option.repeatable else value


def without_impossible(typed):
    """Drop what the job cannot have: so many workers, or workers with so little memory."""
    n_workers = int(typed.get("workers_per_node", 1))
    is_little = 0 < parse_size_bytes(typed.get("mem", 0), allow_zero=True) < n_workers << 28
    too_many = int(typed.get("min_workers", 1)) > int(typed.get("nodes", 1)) * n_workers
    impossible = {name for name, drop in (("mem", is_little), ("min_workers", too_many)) if drop}
    return {name: value for name, value in typed.items() if name not in impossible}


all_typed = st.fixed_dictionaries(
    {"env": VALUES[PATH]}, optional={name: values_of(each) for name, each in OPTIONS.items() if name != "env"}
).map(without_impossible)


def allowed_in(place, typed):
    return {name: typed[name] for name in typed if place in OPTIONS[name].allowed_in}


def as_python(option, text):
    """The value in Python's own type."""
    convert = {COUNT: int, PORT: int, PATH: Path, FLAG: lambda text: text.lower() == "true"}
    if option.repeatable:
        return tuple(text)
    return convert.get(option.kind, str)(text)


def from_command_line(typed, command=()):
    arguments = []
    for name, text in typed.items():
        option = OPTIONS[name]
        if option.kind is FLAG:
            arguments += [option.flag] if text.lower() == "true" else []
        else:
            arguments += [f"{option.flag}={item}" for item in (text if option.repeatable else [text])]
    shown = []
    with mock.patch("mpiboot.client.submit.show_submission", lambda config, say: shown.append(config) or ""):
        assert main(["submit", "--dry-run", *arguments, "--", *command]) == 0
    return shown[0]


def from_python(typed):
    return settings.load_config({name: as_python(OPTIONS[name], text) for name, text in typed.items()})


def from_file(files, typed, convert):
    section = {name.replace("_", "-"): convert(OPTIONS[name], text) for name, text in typed.items()}
    files.write(yaml.safe_dump({"mpiboot": section}))
    config = settings.load_config({})
    files.write("")
    return config


def from_environment(files, typed):
    variables = {f"DASK_MPIBOOT__{name.upper()}": text for name, text in typed.items()}
    with mock.patch.dict(os.environ, variables):
        files.read()
        config = settings.load_config({})
    files.read()
    return config


def as_yaml(option, text):
    value = as_python(option, text)
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


SETTINGS = hypothesis.settings(
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)


@given(typed=all_typed, command=st.lists(words).filter(lambda command: all(command[:1])))
@SETTINGS
def test_every_place_gives_the_same(dask_files, typed, command):
    def expected(place):
        return configuration.merge(allowed_in(place, typed))

    line = from_command_line(allowed_in(SUBMIT, typed), command)
    assert line == configuration.merge(allowed_in(SUBMIT, typed), command=command)
    assert from_python(allowed_in(PYTHON, typed)) == expected(PYTHON)
    assert from_file(dask_files, allowed_in(FILE, typed), as_yaml) == expected(FILE)
    as_text = from_file(dask_files, allowed_in(FILE, typed), lambda option, text: text)
    assert as_text == expected(FILE)
    assert from_environment(dask_files, allowed_in(ENVIRONMENT, typed)) == expected(ENVIRONMENT)


def split_submit_command(command, script):
    """Return the submit command's options, and the script's arguments."""
    place = command.index(str(script))
    pairs = [word.partition("=") for word in command[1:place]]
    return {name: value for name, _, value in pairs}, command[place + 1 :]


def check_boots_config(asked, got, passed_options):
    expected = {
        each.name: getattr(asked, each.name) for each in options_in(BOOT) if each.name not in passed_options
    }
    expected["env_var"] = tuple(item.partition("=")[0] for item in asked.env_var)  # the job has their values
    assert {name: getattr(got, name) for name in expected} == expected
    assert got.command == asked.command


@given(
    typed=all_typed,
    command=st.lists(words),
    environ=st.sampled_from([{}, {"MPIBOOT_STAGE_ROOT": "/scratch"}]),
)
@SETTINGS
def test_boot_gets_what_was_asked_for(typed, command, environ):
    asked = configuration.merge(typed, command=command)
    for batch in (Slurm(), Local()):
        arguments = configuration.boot_arguments(asked, batch.passed_options, environ)
        if batch.facts.name == "slurm":
            line = batch.submit_command(asked, SCRIPT, arguments, environ={}, output_folder=Path("/o"))
            options, arguments = split_submit_command(line, SCRIPT)
            check_slurms_options(asked, options)
        check_boots_config(
            asked, configuration.parse_boot_arguments(arguments, environ), batch.passed_options
        )


def check_slurms_options(asked, options):
    """The options that boot learns from Slurm: sbatch's names for them, and nothing else."""
    for option in OPTIONS.values():
        program, _, name = option.same_as.partition(" ")
        value = getattr(asked, option.name)
        if program != "sbatch" or (value is None and name not in options):
            continue
        if option.name == "mem" and value is None:  # whole nodes, with all of their memory
            assert options[name] == "0" and asked.workers_per_node is None
        elif option.name == "mem":
            assert (value == 0) == (options[name] == "0")
            size_bytes = int(options[name].removesuffix("K")) * 1024
            assert value <= size_bytes < value + 1024
        else:
            assert options[name] == str(value)
    assert [option.name for option in OPTIONS.values() if option.name in Slurm.passed_options] == [
        *("batch_system", "workers_per_node", "mem", "time")
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b", ["a b", " "]),
        ("'\"`", ["'", '"', "`x`"]),
        ("a\nb\n", ["a\nb", "\n"]),
        ("--", ["--", "--env", "/x", "--"]),
        ("-x", ["-x", "--nodes=3"]),
        ("$HOME ${HOME} $(id)", ["$HOME", "$$", "!!"]),
        ("100% %j", ["%", "%%"]),
        ("schön 🐍", ["é", "日本"]),
        ("a\\b\\", ["\\", "\\n"]),
        ("*", ["*", "?", "[a]", "~", "#", "&", ";", "|", ">"]),
        ("a=b,c", ["", "a", ""]),
    ],
)
def test_the_job_script_changes_nothing(tmp_path, text, words):
    prefix = tmp_path / f"e {text}".replace("/", "")
    python = prefix / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    python.chmod(0o755)
    asked = configuration.merge(
        {
            "batch_system": "slurm",
            "interface": text,
            "pack_exclude": [text, "x"],
            "idle_timeout": "14d",
            "warn_before": "0.1s",
        },
        command=["c", *words],
    )
    asked = configuration.replace(asked, env=str(prefix))
    line = Slurm().submit_command(
        asked,
        SCRIPT,
        configuration.boot_arguments(asked, Slurm.passed_options),
        environ={},
        output_folder=tmp_path,
    )
    _, arguments = split_submit_command(line, SCRIPT)
    done = subprocess.run(
        ["bash", SCRIPT, *arguments], env={"PATH": os.defpath, "HOME": "/h"}, capture_output=True, check=True
    )
    got = os.fsdecode(done.stdout).split("\0")[:-1]
    assert got[:6] == ["-I", "-m", "mpiboot", "boot", "--batch-system", "slurm"]
    check_boots_config(asked, configuration.parse_boot_arguments(got[4:], {}), ())


def test_every_kind_has_values_here():
    assert {option.kind for option in OPTIONS.values() if not option.kind.choices} <= VALUES.keys()


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.dates()
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2) | st.sets(st.text())
    ),
    max_leaves=3,
)


@given(
    option=st.sampled_from(list(OPTIONS.values())),
    value=anything,
    place=st.sampled_from([SUBMIT, PYTHON, FILE, BOOT]),
)
@hypothesis.settings(SETTINGS, max_examples=300)
def test_a_value_of_any_type_is_taken_or_refused_in_words(option, value, place):
    try:
        assert option.parse(value, place) is not None
    except UsageError as error:
        assert option.name.replace("_", "-") in str(error).replace("_", "-") and error.remedy


scalars = st.text("0123456789eExobn+-._:~TZ ", max_size=12) | st.sampled_from(
    [
        *(
            "yes",
            "No",
            "on",
            "OFF",
            "true",
            "null",
            "Null",
            "~",
            "=",
            "<<",
            ".inf",
            "-.INF",
            ".NaN",
            "1_000",
            "0b11",
        ),
        *(
            "2026-11-27",
            "2026-11-27 10:00:00",
            "190:20:30",
            "190:20:30.15",
            "0o17",
            "017",
            "!!str 017",
            "''",
            "&x 1",
        ),
    ]
)


@given(option=st.sampled_from([each for each in options_in(FILE) if not each.repeatable]), scalar=scalars)
@hypothesis.settings(SETTINGS, max_examples=300)
def test_what_is_written_in_a_file_is_taken_as_it_is_written_or_refused(dask_files, option, scalar):
    """Whatever YAML makes of it."""
    file = dask_files.folder / "mpiboot.yaml"
    file.write_text(f"mpiboot:\n  {option.name}: {scalar}\n")
    try:
        [text] = yaml.load(file.read_text(), yaml.BaseLoader)["mpiboot"].values()
    except (yaml.YAMLError, ValueError, AttributeError):
        text = None
    try:
        dask_files.read()
        config = settings.load_config({} if option.name == "env" else {"env": "/e"})
    except (UsageError, ValueError):  # Dask's: malformed
        return
    value = getattr(config, option.name)
    if option.kind is FLAG or text in ("", "null", "Null", "NULL", "~"):
        assert value in (True, False, option.default) or option.name == "env"
    else:
        assert value == option.parse(text, FILE)
