"""The command line, ``pffnet COMMAND ...``: one file a command."""

from pffnet_d2.cli.main import main

__all__ = ["main"]
