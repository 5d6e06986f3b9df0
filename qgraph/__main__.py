"""`python -m qgraph` is the same as `qgraph`."""

import sys

from qgraph.cli import main

if __name__ == "__main__":
    sys.exit(main())
