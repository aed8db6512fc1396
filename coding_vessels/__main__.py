"""Makes `python -m coding_vessels` the same as the command `coding_vessels`."""

import sys

from coding_vessels.cli import main

if __name__ == "__main__":
    sys.exit(main())
