"""The one exception that users see.

Every problem that a user can cause or mend (a broken file, a missing model, a full disk) is a `PomonaError`
whose text is one line, "FILE: what is wrong; what to do". The command line prints it and exits with code 2.
Anything else that escapes is a bug in pomona.
"""

from __future__ import annotations

_MAX_CHARACTERS = 2000


class PomonaError(Exception):
    """A problem with the user's input or machine. `str(error)` is a single printable line."""

    def __init__(self, message: str) -> None:
        text = one_line(message)
        if (
            len(text) > _MAX_CHARACTERS
        ):  # a hostile name can be megabytes; what to do stands at the end, so keep both ends
            text = f"{text[: _MAX_CHARACTERS // 2]} ... {text[-_MAX_CHARACTERS // 2 :]}"
        super().__init__(text)


def one_line(text: str) -> str:
    """`text` with every line break, control character and lone surrogate escaped, so that it prints anywhere.

    Names out of foreign files reach messages; a tensor called "x\\n\\x1b[2J" must not reach a terminal as is.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
