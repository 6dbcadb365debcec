"""The one exception that means "the user can mend this"."""


class UsageError(Exception):
    """Bad usage or bad input. Its message names what was wrong, where, and what would fit; the command line prints
    it without a traceback and exits with status 2."""


class Pruned(Exception):
    """A run that a sweeper has given up, because others at the same step were better."""
