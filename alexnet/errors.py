"""Errors of networks and runs that are not defects of this program."""


class RunError(Exception):
    """A run or checkpoint is unusable; the message says what, where, what was found, what to do."""
