import pytest
from click.shell_completion import ShellComplete

from mpiboot import config
from mpiboot.cli.main import commands
from mpiboot.option import SUBMIT


@pytest.mark.parametrize("name", ["submit", "demo"])
def test_a_command_that_submits_takes_every_option_of_a_job(name):
    options = config.options_in(SUBMIT)
    assert [parameter.opts for parameter in commands.commands[name].params][: len(options)] == [
        [option.short, option.flag] if option.short else [option.flag] for option in options
    ]


def test_the_short_forms_are_those_of_sbatch():
    assert {option.short: option.same_as for option in config.OPTIONS.values() if option.short} == {
        "-N": "sbatch --nodes",
        "-p": "sbatch --partition",
        "-t": "sbatch --time",
        "-A": "sbatch --account",
        "-J": "sbatch --job-name",
    }


@pytest.mark.parametrize(
    ("arguments", "incomplete", "expected"),
    [
        (["submit"], "--no", {"--nodes", "--no-stage"}),
        (["submit", "--mpi"], "o", {"openmpi"}),
        (["submit", "--batch-system"], "", {"auto", "slurm", "local"}),
        (["stop"], "12", {"1234", "1250"}),
    ],
)
def test_the_shell_completes(monkeypatch, arguments, incomplete, expected):
    class Job:
        def __init__(self, job_id):
            self.job_id = job_id

    live = [(Job(job_id), None) for job_id in ("1234", "1250", "77")]
    monkeypatch.setattr("mpiboot.client.find.live_jobs", lambda patience_s: live)
    completions = ShellComplete(commands, {}, "mpiboot", "_X").get_completions(arguments, incomplete)
    assert {completion.value for completion in completions} == expected


@pytest.mark.parametrize("command", [("x", "-y"), ("x", "--nodes", "3", "--", "-J", ""), ("x", "--help")])
@pytest.mark.parametrize("separator", [("--",), ()])
def test_what_is_typed_reaches_the_job_and_the_rest_is_left_to_the_lower_layers(
    run, monkeypatch, command, separator
):
    layers = []
    monkeypatch.setattr(
        "mpiboot.client.settings.load_config", lambda layer, place: layers.append(layer) or exit(9)
    )
    typed = ("-N", "2", "--no-stage", "--env-var", "A", "--env-var", "B=1")
    with pytest.raises(SystemExit):
        run("submit", *typed, *separator, *command)
    assert layers == [{"nodes": "2", "no_stage": True, "env_var": ("A", "B=1"), "command": command}]
