import pytest

from mpiboot.cli.main import main


@pytest.fixture
def run(capsys):
    """Run one command; returns its exit status, stdout and stderr."""

    def run(*arguments):
        status = main(arguments)
        return status, *capsys.readouterr()

    return run
