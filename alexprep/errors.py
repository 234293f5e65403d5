"""What goes wrong while preparing data and is not a defect of this program."""


class PrepareError(Exception):
    """A source or target is unusable; the message says what, where, what was found, what to do."""
