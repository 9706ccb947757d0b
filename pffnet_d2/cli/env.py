"""``pffnet env``: what is installed, what is missing, what to type."""

from __future__ import annotations

import argparse

from pffnet_d2 import env

HELP = "what is installed, what is missing, what to type"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """1 where something that is required is missing."""
    return env.main()
