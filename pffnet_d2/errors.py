"""The exceptions that end a command with one line instead of a traceback."""


class InputError(ValueError):
    """A user's mistake, told in one line: what names the file (or key), what is wrong with it and what to do.

    Commands print the message without a traceback and exit with code 2.
    """


class NonFiniteLoss(FloatingPointError):
    """A loss became infinite or NaN. One line: which, of which images, what helps. Commands exit with code 1."""
