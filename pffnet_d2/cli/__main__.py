"""``python -m pffnet_d2.cli``."""

import sys

from pffnet_d2.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
