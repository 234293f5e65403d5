"""Errors of networks and runs that are not defects of this program."""


class RunError(Exception):
    """A run or checkpoint is unusable; the message says what, where, what was found, what to do."""


class LostConnection(RunError):  # noqa: N818 - RunError says that it is one
    """Another process of the run is gone or stuck; its own error says why."""
