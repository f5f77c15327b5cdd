"""Lists of phrases per feature: what must not pass, and what is put in the place of something else.

    version: 1
    deny:
      - phrase: begin private key
        category: privacy_property.trade_secrets
        in: output
    replace:
      - phrase: colour
        with: color

A phrase is words, not a regular expression: nobody's list can make the matcher run for ever, as a careless
expression can. Words match whole and in any case, whatever the white space between them; `*` at a word's end
stands for any ending. Full-width letters, invisible characters and accents are folded before `deny` looks, so
that they do not hide a phrase; `replace` takes the text as it is. (Report, section 8.4: deny and replace
lists per feature stand beside the model's guardrail.)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pomona.errors import PomonaError
from pomona.posttraining.options import load_yaml
from pomona.safety.guardrail_head import Side
from pomona.safety.taxonomy import taxonomy

FOLDER = Path(__file__).with_name("patterns")
MAX_PHRASES = 2_000
MAX_LETTERS = 200  # of a phrase
LONGEST_WORD = 64  # longer ones are looked at in parts
_WORD = re.compile(r"\S+")
Phrase = Annotated[str, Field(min_length=1, max_length=MAX_LETTERS)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    phrase: Phrase

    @field_validator("phrase")
    @classmethod
    def _words(cls, value: str) -> str:
        words = value.split()
        if not words or any("*" in word[:-1] or word == "*" for word in words):
            raise ValueError("must be words; * stands at a word's end only")
        return value


class Deny(_Entry):
    category: str
    side: Literal["input", "output", "both"] = Field("both", alias="in")

    @field_validator("category")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            taxonomy().category(value)
        except PomonaError as error:
            raise ValueError(str(error)) from error
        return value


class Replace(_Entry):
    text: Annotated[str, Field(alias="with", max_length=1000)]


@dataclass(frozen=True)
class Match:
    """What was found. `phrase` is the list's, not the text's."""

    phrase: str
    category: str


class PatternList(BaseModel):
    """One file of phrases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    deny: tuple[Deny, ...] = Field((), max_length=MAX_PHRASES)
    replace: tuple[Replace, ...] = Field((), max_length=MAX_PHRASES)

    @classmethod
    def read(cls, name: str) -> PatternList:
        """name: of a list that ships with pomona, or a .yaml file. PomonaError: no such list, a wrong one."""
        path = FOLDER / f"{name}.yaml" if re.fullmatch(r"[a-z_]+", name) else Path(name)
        if not path.is_file():
            there = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
            raise PomonaError(f"patterns {name}: no such list; give a .yaml file, or one of {there}")
        try:
            return cls.model_validate(load_yaml(path))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, problem["loc"]))
            raise PomonaError(f"{path}: {place}: {problem['msg']}; correct it") from error


class Patterns:
    """Several lists together, ready to be matched. A text costs one pass for each kind of entry."""

    def __init__(self, lists: Sequence[PatternList]) -> None:
        self._lists = lists

    def denied(self, text: str, side: Side) -> Match | None:
        """The first phrase of the text that must not pass there."""
        entries, pattern = self._denied[side]
        found = None if pattern is None else pattern.search(folded(text))
        if found is None:
            return None
        entry = entries[int(found.lastgroup[1:])]  # type: ignore[index]
        return Match(entry.phrase, entry.category)

    def replaced(self, text: str) -> str:
        entries, pattern = self._replaced
        if pattern is None:
            return text
        return pattern.sub(lambda found: entries[int(found.lastgroup[1:])].text, text)  # type: ignore[index]

    def between(self, text: str, place: int) -> int:
        """`place`, or where the phrase begins that is replaced there: no phrase is cut in two."""
        pattern = self._replaced[1]
        found = () if pattern is None else pattern.finditer(text)
        return next((one.start() for one in found if one.start() < place < one.end()), place)

    @cached_property
    def most_words(self) -> int:
        """Of a phrase; 0: there is none."""
        return max(
            (len(e.phrase.split()) for one in self._lists for e in (*one.deny, *one.replace)), default=0
        )

    @cached_property
    def _denied(self) -> dict[Side, tuple[list[Deny], re.Pattern[str] | None]]:
        every = [entry for one in self._lists for entry in one.deny]
        found: dict[Side, tuple[list[Deny], re.Pattern[str] | None]] = {}
        for side in ("input", "output"):
            entries = [entry for entry in every if entry.side in (side, "both")]
            found[side] = (entries, _alternatives([folded(entry.phrase) for entry in entries]))
        return found

    @cached_property
    def _replaced(self) -> tuple[list[Replace], re.Pattern[str] | None]:
        entries = [entry for one in self._lists for entry in one.replace]
        return entries, _alternatives([entry.phrase for entry in entries])


class PhraseFilter:
    """An answer that arrives in pieces: push() gives what of it can be shown, with its replacements.

    Held back are as many words as the longest phrase has, for one may have begun. `found`: the phrase that
    must not pass; nothing follows it.
    """

    def __init__(self, patterns: Patterns) -> None:
        self._patterns = patterns
        self._held = ""
        self.found: Match | None = None

    def push(self, piece: str) -> str:
        words = self._patterns.most_words
        if not words:
            return piece
        if self.found is not None:
            return ""
        text = self._held + piece
        starts = [word.start() for word in _WORD.finditer(text)]
        complete = text[: starts[-1]] if starts and not text[-1].isspace() else text
        if len(text) - len(complete) > LONGEST_WORD:  # a script without white space
            complete = text
        self.found = self._patterns.denied(complete, "output")
        if self.found is not None:
            return ""
        cut = max(starts[-words] if len(starts) > words else 0, len(text) - words * LONGEST_WORD)
        cut = self._patterns.between(complete, cut)
        self._held = text[cut:]
        return self._patterns.replaced(text[:cut])

    def flush(self) -> str:
        """What was held back, when nothing follows."""
        text, self._held = self._held, ""
        if self.found is None:
            self.found = self._patterns.denied(text, "output")
        return "" if self.found is not None else self._patterns.replaced(text)


def _alternatives(phrases: Sequence[str]) -> re.Pattern[str] | None:
    """Literal words joined by white space; every part has one way to match, so the time grows with the text
    alone."""
    parts = []
    for number, phrase in enumerate(phrases):
        words = [
            re.escape(word.removesuffix("*")) + (r"\w*+" if word.endswith("*") else "")
            for word in phrase.split()
        ]
        parts.append(f"(?P<p{number}>" + r"\s++".join(words) + ")")
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)", re.IGNORECASE) if parts else None


def folded(text: str) -> str:
    """In one form: compatibility letters as plain ones, no accents, no invisible characters, lower case."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in plain if unicodedata.category(c) not in ("Mn", "Cf"))
