"""`python -m qgraph` is the same as `qgraph`."""

import sys


def run() -> int:
    """Run the command line; Ctrl-C counts as an interruption while it is being imported, too."""
    try:
        from qgraph.cli import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
