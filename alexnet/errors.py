"""What goes wrong with a network or a run and is not a defect of this program."""


class RunError(Exception):
    """A run or checkpoint is unusable; the message says what, where, what was found, what to do."""
