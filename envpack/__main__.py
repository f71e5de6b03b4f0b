"""`python -m envpack`: what a node runs, where no console script may be found."""

import sys

from envpack.cli import main

if __name__ == "__main__":
    sys.exit(main())
