"""`python -m envpack`, for nodes where no console script can be found."""

import sys

from envpack.cli import main

if __name__ == "__main__":
    sys.exit(main())
