"""The one exception that means "the user can mend this"."""


class UsageError(Exception):
    """Bad usage or bad input. Its message names what was wrong, where, and what would fit; the command line prints
    it without a traceback and exits with status 2."""
