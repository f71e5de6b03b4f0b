"""What a user may ask of sbatch besides mpiboot's own options: arguments, variables, and directives of a job script.

`submission` imports this module; it imports only the errors.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpiboot.errors import UsageError

# sbatch's options that take a value, with the short forms (sbatch(1) of 20.11 to 26.05). The value of the others, if
# they take one, stands behind an equals sign.
_TAKE_VALUE = """
    account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
    container-id core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency
    distribution error exclude export export-file extra extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node
    gpus-per-socket gpus-per-task gres gres-flags hint input job-name kill-on-invalid-dep licenses mail-type
    mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile nodelist nodes ntasks
    ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output partition power prefer
    priority profile qos reservation segment signal sockets-per-node switches thread-spec threads-per-core time
    time-min tmp tres-bind tres-per-task uid wait-all-nodes wckey wrap
"""
_FLAGS = """
    consolidate-segments contiguous exclusive external get-user-env help hold ignore-pbs nice no-kill no-requeue
    overcommit oversubscribe parsable propagate quiet reboot requeue resv-ports share spread-job spread-segments
    stepmgr test-only usage use-min-nodes verbose version wait
"""
TAKE_VALUE, FLAGS = frozenset(_TAKE_VALUE.split()), frozenset(_FLAGS.split())
SHORT = {
    **{
        "A": "account",
        "a": "array",
        "B": "extra-node-info",
        "b": "begin",
        "C": "constraint",
        "c": "cpus-per-task",
    },
    **{"D": "chdir", "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "h": "help"},
    **{"i": "input", "J": "job-name", "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution"},
    **{
        "N": "nodes",
        "n": "ntasks",
        "O": "overcommit",
        "o": "output",
        "p": "partition",
        "Q": "quiet",
        "q": "qos",
    },
    **{"S": "core-spec", "s": "oversubscribe", "t": "time", "V": "version", "v": "verbose", "W": "wait"},
    **{"w": "nodelist", "x": "exclude"},
}
# Arguments, directives and variables that would make something else than one job of this cluster that runs mpiboot's
# script, or that keep boot from learning of the end of the walltime; each with the reason and the remedy. Whatever else
# is asked for, Slurm tells boot in the job.
SEVERAL_JOBS = "mpiboot makes one cluster of one job"
REFUSED = {
    "array": (f"an array is many jobs, and {SEVERAL_JOBS}", "Leave it out, and submit several jobs"),
    "hetjob": (
        f"a heterogeneous job has several allocations, and {SEVERAL_JOBS} with one",
        "Leave it out: workers fill each node by its own CPUs and memory, so the nodes of one allocation may differ",
    ),
    "wait": ("sbatch would return only when the job ends", "Use mpiboot submit --wait"),
    "wrap": ("the job runs mpiboot's own script", "Give the command last: mpiboot submit -- COMMAND"),
    "signal": ("boot needs the signal that the job script asks for", "Use --warn-before"),
    "test-only": ("no job would be submitted", "Use mpiboot submit --dry-run"),
    **dict.fromkeys(
        ("help", "usage", "version"), ("no job would be submitted", "Type it by hand: sbatch --help")
    ),
    "external": ("the job would run nothing", "Leave it out"),
}
# The variables that stand for such arguments.
REFUSED_VARIABLES = {"SBATCH_ARRAY_INX": "array", "SBATCH_WAIT": "wait"}
CLUSTER_VARIABLES = ("SBATCH_CLUSTERS", "SLURM_CLUSTERS")
MEMORY = frozenset(("mem", "mem-per-cpu", "mem-per-gpu"))
MEMORY_VARIABLES = ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU")


def parse_arguments(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return sbatch's options as (long name, value), in their order, and the words from the script's name on.

    Like getopt_long(3): a long name may be shortened, short options may share a word, and a value may be the next word.
    The colon between the components of a heterogeneous job is the option `hetjob`.
    """
    options: list[tuple[str, str]] = []
    words = list(arguments)
    while words and words[0].startswith(("-", ":")) and words[0] not in ("-", "--"):
        word = words.pop(0)
        if word.startswith("--"):
            typed, equals, value = word[2:].partition("=")
            name = _full_name(typed)
            if name in TAKE_VALUE and not equals and words:
                value = words.pop(0)
            options.append((name, value))
        elif word == ":":
            options.append(("hetjob", ""))
        else:
            letters = word[1:]
            while letters:
                name, letters = SHORT.get(letters[0], letters[0]), letters[1:]
                if name in TAKE_VALUE:
                    value, letters = letters or (words.pop(0) if words else ""), ""
                    options.append((name, value.removeprefix("=")))
                else:
                    options.append((name, ""))
    return options, words


def _full_name(typed: str) -> str:
    """Return the name of a long option that may be shortened; itself if it is unknown.

    An ambiguous one, which another version of sbatch may know how to read, counts as the one that is refused.
    """
    names = TAKE_VALUE | FLAGS
    longer = sorted(name for name in names if name.startswith(typed))
    if typed in names or not longer:
        return typed
    refused = [name for name in longer if name in REFUSED or name == "clusters"]
    return longer[0] if len(longer) == 1 else next(iter(refused), typed)


def directives(script: Path) -> list[tuple[str, str]]:
    """Return the options in the `#SBATCH` lines of a job script; none if it cannot be read.

    sbatch reads them up to the first line that is neither blank nor a comment.
    """
    options: list[tuple[str, str]] = []
    with contextlib.suppress(OSError):
        for line in script.read_text(errors="replace").splitlines():
            if line.strip() and not line.startswith("#"):
                break
            if match := re.match(r"#SBATCH\s+(.*)", line):
                words = _split(match[1])
                hetjob = words[:1] in (["hetjob"], ["packjob"])
                options += [("hetjob", "")] if hetjob else parse_arguments(words)[0]
    return options


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:  # a quote without its end: sbatch will say so
        return text.split()


def check(
    batch_arg: Sequence[str], in_script: Sequence[tuple[str, str]], environ: Mapping[str, str], script: Path
) -> None:
    """Refuse what keeps a job from being one job of this cluster that runs mpiboot's script.

    Raises
    ------
    UsageError
        The message names the argument, the variable or the directive.
    """
    options, rest = parse_arguments(batch_arg)
    if rest:
        raise UsageError(
            f"--batch-arg={rest[0]}: sbatch would take it for the job script",
            "Write an option and its value as one word: --batch-arg=--NAME=VALUE",
        )
    shown = [(name, f"--batch-arg={_dashed(name)}") for name, _ in options]
    shown += [(name, variable) for variable, name in REFUSED_VARIABLES.items() if environ.get(variable)]
    shown += [(name, f"{script}: #SBATCH {_dashed(name)}") for name, _ in in_script if name != "signal"]
    for name, where in shown:
        if name in REFUSED:
            raise UsageError(f"{where}: {REFUSED[name][0]}", REFUSED[name][1])


def _dashed(name: str) -> str:
    return ":" if name == "hetjob" else f"--{name}"


def clusters(
    batch_arg: Sequence[str], in_script: Sequence[tuple[str, str]], environ: Mapping[str, str], script: Path
) -> dict[str, str]:
    """Return the clusters that the user asks for, by the argument, the variable or the directive that names them."""
    options, _ = parse_arguments(batch_arg)
    return {
        **{f"{script}: #SBATCH --clusters={value}": value for name, value in in_script if name == "clusters"},
        **{f"{name}={environ[name]}": environ[name] for name in CLUSTER_VARIABLES if environ.get(name)},
        **{f"--batch-arg=--clusters={value}": value for name, value in options if name == "clusters"},
    }


def export_options(
    options: Sequence[tuple[str, str]], environ: Mapping[str, str], variables: Sequence[str]
) -> list[str]:
    """Return options that make variables reach the job even if the user, or the site, keeps sbatch from exporting them.

    Their values stay in the environment: every user of the machine can read a command line (sbatch(1), `--export` and
    SBATCH_EXPORT).

    Parameters
    ----------
    options : sequence of tuples
        sbatch's options, as `parse_arguments` returns them.
    environ : mapping
        The environment of sbatch.
    variables : sequence of str
        The names of the variables.
    """
    given = [value for name, value in options if name == "export"]
    export = given[-1] if given else environ.get("SBATCH_EXPORT", "ALL")
    words = [word for word in export.split(",") if word not in ("NONE", "NIL")]
    if not variables or "ALL" in words:
        return []
    # NONE alone gives the job its login environment; with names of variables, --get-user-env must request it.
    login = ["--get-user-env"] if export == "NONE" else []
    return [f"--export={','.join(dict.fromkeys([*words, *variables]))}", *login]
