"""Stop texts in an answer that arrives in pieces: the text ends before the one that is complete first."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """push() gives what of the text can be shown: all of it that cannot be the beginning of a stop text."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        if not self._texts:
            return piece
        if self.found:
            return ""
        text = self._held + piece
        places = [(place + len(stop), place) for stop in self._texts if (place := text.find(stop)) >= 0]
        if places:  # the first end: so the pieces in which the text comes make no difference
            self.found, self._held = True, ""
            return text[: min(places)[1]]
        keep = max(_overlap(text, stop) for stop in self._texts)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many letters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)
