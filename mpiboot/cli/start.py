"""The start of the `mpiboot` command: a Ctrl-C while it imports the rest is one line, too."""

import sys


def start() -> int:
    """Run the command line of this process; return its exit status."""
    try:
        from mpiboot.cli.main import main
    except KeyboardInterrupt:
        print("\nmpiboot: interrupted. Jobs go on; see them: mpiboot list", file=sys.stderr)
        return 130
    return main()
