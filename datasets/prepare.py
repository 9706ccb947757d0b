#!/usr/bin/env python
"""`pffnet prepare` as a script: python datasets/prepare.py NAME [--source DIR] [--out ROOT]."""

import sys

from pffnet_d2.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
