"""What goes wrong while preparing data and is not a defect of this program."""


class PrepareError(Exception):
    """A source or target is unusable; the message says what, where, what was found, what to do.

    Each argument is a line of it, for those that list files.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def printable(text: str, keep: str = "") -> str:
    """Text for a terminal: names of files and classes may hold sequences that control one.

    What is not printable is written as Python writes it, but for the characters of `keep`.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode()
        for character in text
    )
