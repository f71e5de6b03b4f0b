import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mpiboot.batch.slurm import arguments
from mpiboot.batch.slurm.arguments import directives, export_options, parse_arguments
from mpiboot.errors import UsageError

SCRIPT = Path("/none/job.sh")


@pytest.mark.parametrize(
    ("words", "options", "rest"),
    [
        ("--qos=x -q y -qz", [("qos", "x"), ("qos", "y"), ("qos", "z")], []),
        (
            "--array 1-3 --arr=1 -a1 -a 1",
            [("array", "1-3"), ("array", "1"), ("array", "1"), ("array", "1")],
            [],
        ),
        ("-Ha1-3", [("hold", ""), ("array", "1-3")], []),
        ("-M other --clu=b", [("clusters", "other"), ("clusters", "b")], []),
        (
            "--exclusive --exclusive=user --exc a",
            [("exclusive", ""), ("exclusive", "user"), ("exc", "")],
            ["a"],
        ),
        ("-k -W --wait", [("no-kill", ""), ("wait", ""), ("wait", "")], []),
        ("-N2 : -N1", [("nodes", "2"), ("hetjob", ""), ("nodes", "1")], []),
        ("--an-option-of-a-later-one=3 -Z", [("an-option-of-a-later-one", "3"), ("Z", "")], []),
        ("-p a script.sh --qos=x", [("partition", "a")], ["script.sh", "--qos=x"]),
        ("-- x", [], ["--", "x"]),
        ("-t", [("time", "")], []),
        ("", [], []),
    ],
)
def test_arguments_are_read_as_getopt_reads_them(words, options, rest):
    assert parse_arguments(words.split()) == (options, rest)


@pytest.mark.skipif(not shutil.which("man"), reason="no manual pages")
def test_the_options_are_those_of_the_manual():
    manual = subprocess.run(["man", "sbatch"], capture_output=True, text=True, env={"MANWIDTH": "200"}).stdout
    lines = re.findall(r"^       (-.*)$", re.sub(".\b", "", manual), re.MULTILINE)
    if not lines:
        pytest.skip("no manual page of sbatch")
    for line in lines:
        for name, end in re.findall(r"--([a-z0-9-]+)(\[?=)?", line)[:1]:
            assert name in (arguments.TAKE_VALUE if end == "=" else arguments.FLAGS), line
        if both := re.match(r"-(\w), +--([a-z-]+)", line):
            assert arguments.SHORT[both[1]] == both[2]


@pytest.mark.parametrize(
    ("batch_arg", "remedy"),
    [
        *(
            (words, "several jobs")
            for words in ("--array=1-3", "-a1", "-a 1", "--array 1", "--arr=1", "-Qa1")
        ),
        *((words, "Leave it out: workers fill each node") for words in (":", "-N2 : -N1")),
        *((words, "Use mpiboot submit --wait") for words in ("--wait", "-W", "-QW")),
        ("--wrap=hostname", "mpiboot submit -- COMMAND"),
        ("--signal=TERM@10", "Use --warn-before"),
        ("--test-only", "Use mpiboot submit --dry-run"),
        *((words, "sbatch --help") for words in ("--help", "-h", "--usage", "--version", "-V")),
        ("other.sh", "as one word"),
        ("--new-option value", "as one word"),
    ],
)
def test_what_makes_something_else_than_one_job_is_refused(batch_arg, remedy):
    with pytest.raises(UsageError, match=re.escape(remedy)) as error:
        arguments.check(batch_arg.split(), [], {}, SCRIPT)
    assert error.value.problem.startswith("--batch-arg=") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("variable", "refused"),
    [
        ("SBATCH_ARRAY_INX", True),
        ("SBATCH_WAIT", True),
        ("SBATCH_PARTITION", False),
        ("SBATCH_REQUEUE", False),
    ],
)
def test_variables_of_sbatch(variable, refused):
    if refused:
        with pytest.raises(UsageError, match=f"^{variable}: "):
            arguments.check([], [], {variable: "1"}, SCRIPT)
    arguments.check([], [], {variable: ""} if refused else {variable: "1"}, SCRIPT)


@pytest.mark.parametrize(
    "batch_arg",
    [
        *("--qos=x", "--constraint=a&b", "--requeue", "--nodes=2-4", "-n8", "--chdir=/x", "--output=a.out"),
        *("--job-name=x", "--hold", "--begin=now+1hour", "--export=NONE", "--comment=x", "--propagate=ALL"),
        *("--dependency=afterok:7", "--reservation r", "--exclusive=user", "--parsable", "-Q", "--mem=0"),
        *("--gres=gpu:2", "--hint=nomultithread", "--ntasks-per-core=1", "--no-kill=off", "-J x"),
    ],
)
def test_what_slurm_tells_boot_in_the_job_is_taken(batch_arg):
    arguments.check(batch_arg.split(), [], {}, SCRIPT)


def test_directives(tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --comment='my project' --exclusive # why\n\n# words\n#SBATCH -a 1-3\n"
        "#SBATCH hetjob\n#SBATCHx\n#SBATCH --job-name=it's\ntrue\n#SBATCH --wait\n"
    )
    assert directives(script) == [
        *(
            ("comment", "my project"),
            ("exclusive", ""),
            ("array", "1-3"),
            ("hetjob", ""),
            ("job-name", "it's"),
        ),
    ]
    assert directives(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("text", "words"), [("--array=1-3", "--array"), ("hetjob", ":"), ("packjob", ":"), ("-W", "--wait")]
)
def test_a_sites_own_job_script_is_checked(tmp_path, text, words):
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --signal=B:USR1@300\n#SBATCH {text}\n")
    with pytest.raises(UsageError, match=re.escape(f"{script}: #SBATCH {words}: ")):
        arguments.check([], directives(script), {}, script)


def test_which_clusters_are_asked_for(tmp_path):
    environ = {"SLURM_CLUSTERS": "a", "SBATCH_CLUSTERS": "b", "SLURM_CLUSTER_NAME": "c"}
    assert arguments.clusters(["-Md"], [("clusters", "e")], environ, SCRIPT) == {
        "SLURM_CLUSTERS=a": "a",
        "SBATCH_CLUSTERS=b": "b",
        "--batch-arg=--clusters=d": "d",
        "/none/job.sh: #SBATCH --clusters=e": "e",
    }


@pytest.mark.parametrize(
    ("batch_arg", "environ", "names", "expected"),
    [
        ([], {}, ["A"], []),
        (["--export=ALL"], {"SBATCH_EXPORT": "NONE"}, ["A"], []),
        (["--export=ALL,B=1"], {}, ["A"], []),
        (["--export=NONE"], {}, ["A", "B"], ["--export=A,B", "--get-user-env"]),
        (["--export", "NONE"], {}, ["A"], ["--export=A", "--get-user-env"]),
        ([], {"SBATCH_EXPORT": "NONE"}, ["A"], ["--export=A", "--get-user-env"]),
        (["--export=NONE", "--export=HOME,A"], {}, ["A"], ["--export=HOME,A"]),
        (["--export=NONE"], {}, [], []),
    ],
)
def test_what_is_exported_where_not_all_is(batch_arg, environ, names, expected):
    assert export_options(parse_arguments(batch_arg)[0], environ, names) == expected
