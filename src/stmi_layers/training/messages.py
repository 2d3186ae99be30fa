"""Names of files in messages: short, and printable whatever bytes they are made of."""

from collections.abc import Iterable


def printable(text: object) -> str:
    r"""Return a text with control characters and invalid Unicode escaped, so that a terminal obeys none of them.

    >>> printable("a\x1b[2J\n")
    'a\\x1b[2J\\n'
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))


def shorten(names: Iterable[str]) -> str:
    """Return the first five names, and the number of further names."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(printable, names[:5])) + more
