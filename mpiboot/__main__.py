"""`python -m mpiboot`. `boot` starts from a slow shared file system, so it bypasses the command line and its imports."""

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["boot"]:
        from mpiboot.boot.sequence import main as boot

        sys.exit(boot(sys.argv[2:]))
    from mpiboot.cli.start import start

    sys.exit(start())
