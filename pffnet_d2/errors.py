"""The one exception a user's mistake raises."""


class InputError(ValueError):
    """A user's mistake, told in one line: what names the file (or key), what is wrong with it and what to do.

    Commands print the message without a traceback and exit with code 2.
    """
