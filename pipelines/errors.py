"""What goes wrong with a data set and is not a defect of this program."""


class DataError(Exception):
    """A data set cannot be used; the message says what, where, what was found and what to do."""
