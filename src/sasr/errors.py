"""The one exception that users see as a single line instead of a traceback."""


class InputError(ValueError):
    """Something that the user gave cannot be used: a setting, a file, a checkpoint, a model.

    The message is one line that says what is wrong, where, and what to do about it. The command line prints it
    after `sasr: error:` and exits with status 2; in Python it is an ordinary `ValueError`.
    """
