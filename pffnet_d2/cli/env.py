"""``pffnet env``: what is installed, what is missing, and how to install it."""

from __future__ import annotations

import argparse

from pffnet_d2 import env

HELP = "show what is installed, what is missing, and how to install it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace) -> int:
    """Returns 1 where a required package is missing."""
    return env.main()
