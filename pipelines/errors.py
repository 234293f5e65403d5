"""What goes wrong with a data set and is not a defect of this program, in words for people."""

import re

# User and password before the host, and the query after "?", of the URLs in a text.
USERINFO = re.compile(r"(?<=://)[^/?#\s]+@")
QUERY = re.compile(r"(://[^\s?#'\"]*\?)[^\s#'\"]+")


class DataError(Exception):
    """A data set cannot be used; the message says what, where, what was found and what to do."""


def hide_secrets(text: str) -> str:
    """The text with *** for passwords and signatures in its URLs, as messages and logs show it."""
    return QUERY.sub(r"\1***", USERINFO.sub("***@", text))
