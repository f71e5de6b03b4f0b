"""No command line, however wrong, ends in an error that nobody has foreseen."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiboot import config
from mpiboot.cli.main import commands as cli
from mpiboot.cli.main import main
from mpiboot.errors import BatchError, UsageError

FLAGS = sorted({flag for command in cli.commands.values() for each in command.params for flag in each.opts})
# What the operating system makes of arguments: any bytes but NUL. Surrogates stand for those that are no UTF-8.
text = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from("\udc80\udcff")
)
values = text | st.sampled_from(
    [
        *(
            "",
            "0",
            "1",
            "-1",
            "2.0",
            "abc",
            "nan",
            "inf",
            "1e9",
            "1e999",
            "9" * 5000,
            "0x1",
            "٣",
            "True",
            "None",
        ),
        *(
            "--",
            "-",
            "=",
            "a\nb",
            "~",
            "~no-such-user/x",
            "$NONE",
            "${",
            "/",
            "..",
            "1:2:3",
            "1-",
            "64G",
            "A=1",
            "1=2",
        ),
        *("PATH=/x", "auto", "local", "slurm", "@/etc/passwd", "[a]", "{}", "%s", "{0}"),
    ]
)
flags = st.sampled_from(FLAGS)
tokens = flags | values | st.builds("{}={}".format, flags, values) | st.builds("{}{}".format, flags, values)


@pytest.fixture(scope="module")
def nothing_happens(tmp_path_factory):
    """Nothing is submitted, and there is no batch system to ask."""

    def refuse(*_, **__):
        raise BatchError("there is no batch system", "Do nothing")

    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPIBOOT_HOME", str(home))
        patch.setenv("DASK_CONFIG", str(home))
        for name in ("submit.submit_config", "submit.show_submission", "find.find_job", "find.live_jobs"):
            patch.setattr(f"mpiboot.client.{name}", refuse)
        patch.setattr("mpiboot.client.doctor.run_checks", refuse)
        yield


# boot is fuzzed below: it would catch this process's signals.
@given(
    command=st.sampled_from(sorted(cli.commands.keys() - {"boot"})) | values,
    arguments=st.lists(tokens, max_size=5),
)
@hypothesis.settings(
    database=None, deadline=None, max_examples=200, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
def test_any_arguments(nothing_happens, command, arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([command, *arguments])
    shown = out.getvalue() + err.getvalue()
    assert status in (0, 1, 2) and "Traceback" not in shown and "should not happen" not in shown
    if status == 2 and not shown.startswith("Usage: "):  # without a command there is the help
        assert err.getvalue().startswith("mpiboot: ") and ". " in shown


@given(arguments=st.lists(tokens, max_size=5))
@hypothesis.settings(database=None, deadline=None, max_examples=200)
def test_any_arguments_of_a_job_script(arguments):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(UsageError, SystemExit):
        config.parse_boot_arguments(arguments, {})


@pytest.mark.parametrize(
    ("shell", "status"),
    [
        ("jobscript >&-", {0}),
        ("jobscript | head -c1 >/dev/null; exit ${PIPESTATUS[0]}", {0, 1, 141}),
        ("jobscript >/dev/full", {1}),
        ("list 2>&-", {0, 1}),
        ("list </dev/null", {0, 1}),
        ("submit --env $'\\xff'", {1, 2}),
        ("submit --nodes $'\\xff'", {2}),
        ("list", {0, 1}),
    ],
)
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"HOME": ""},
        {"HOME": "/proc/nowhere", "MPIBOOT_HOME": ""},
        {"CD": "gone"},
    ],
)
def test_any_surroundings(tmp_path, shell, status, variables):
    """A stream that is closed or full, another locale, no home, a working directory that was removed."""
    (tmp_path / "sinfo").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "gone").mkdir()
    environ = {
        **os.environ,
        "MPIBOOT_HOME": str(tmp_path / "home"),
        "DASK_CONFIG": str(tmp_path),
        **variables,
    }
    environ["PYTHONPATH"] = str(Path(config.__file__).parents[1])
    leave = 'cd gone && rmdir "$PWD";' if "CD" in variables else ""
    done = subprocess.run(
        ["bash", "-c", f"{leave} {sys.executable} -m mpiboot {shell}"],
        cwd=tmp_path, env=environ, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    assert done.returncode in status, done.stderr
    assert "Traceback" not in done.stderr and "should not happen" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("dask.yaml", "logging: {distributed: loud}", "KeyError: 'LOUD' ("),
        ("distributed.py", "raise ImportError('another one')", "ImportError: another one ("),
    ],
)
def test_a_distributed_that_cannot_be_imported(tmp_path, file, content, reason):
    """Dask's configuration has such a value, or a module's PYTHONPATH another distributed."""
    (tmp_path / file).write_text(content)
    folders = f"{tmp_path}:{Path(config.__file__).parents[1]}"
    done = subprocess.run(
        [sys.executable, "-m", "mpiboot", "submit", "--batch-system", "local"],
        env={**os.environ, "DASK_CONFIG": str(tmp_path), "PYTHONPATH": folders, "MPIBOOT_HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"mpiboot: distributed cannot be imported: {reason}")
    assert done.stderr.endswith(f"PYTHONPATH, then try: {sys.executable} -c 'import distributed'\n")
    assert len(done.stderr.splitlines()) == 1
