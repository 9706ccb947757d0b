"""The command line, ``pffnet COMMAND ...``: ``pffnet_d2.cli.main.main``."""
