"""A rule for faithful text: it names nobody and counts nothing that its source does not.

It finds new numbers and new names, not false statements: "Anna pays Ben" for "Ben pays Anna" passes. A name
is a word with a capital inside a sentence, or at the beginning of one if it is a name that recipes/names.py
knows; a number is written in digits, or a word up to twelve.
"""

from __future__ import annotations

import re

from pomona.adapters.metrics import Metric, mean

_NUMBER_WORDS = dict(
    zip(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"],
        range(1, 13),
        strict=True,
    )
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE_START = re.compile(r"(?:^|[.!?:;\n]\s*|[-*•]\s+|[\"“(]\s*)$")
_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
_NO_NAME = {"i", "i'm", "i’m", "i'll", "i’ll", "i've", "i’ve", "i'd", "i’d", "ok", "pm", "am", "re", "fyi"}


def new_numbers(text: str, source: str) -> list[str]:
    """Numbers of `text` that are not in `source`, in digits or as words."""
    known = {_canonical(number) for number in _NUMBER.findall(source)}
    # "3rd", "14:30" and "2026-03-01" hold the numbers of their parts too.
    known |= {part.lstrip("0") or "0" for part in re.findall(r"\d+", source)}
    known |= {str(_NUMBER_WORDS[word]) for word in _lower_words(source) if word in _NUMBER_WORDS}
    found = [number for number in _NUMBER.findall(text) if _canonical(number) not in known]
    # "one" is no number in "one of them".
    spelled = [word for word in dict.fromkeys(_lower_words(text)) if _NUMBER_WORDS.get(word, 1) > 1]
    return found + [word for word in spelled if str(_NUMBER_WORDS[word]) not in known]


def new_names(text: str, source: str) -> list[str]:
    """Names of `text` none of whose spellings is in `source`."""
    from pomona.adapters.recipes.names import known_names

    known = set(_lower_words(source))
    found = []
    for match in _WORD.finditer(text):
        word = re.sub(r"['’]s$", "", match[0])
        if not word[0].isupper() or word.casefold() in _NO_NAME or word.casefold() in known:
            continue
        parts = word.casefold().split("-")
        if all(part in known for part in parts):
            continue
        if _SENTENCE_START.search(text[: match.start()]) and word not in known_names():
            continue
        found.append(word)
    return found


def faithful(text: str, source: str) -> bool:
    return not new_numbers(text, source) and not new_names(text, source)


FAITHFUL: Metric = mean(
    "faithful", lambda text, example: float(bool(text) and faithful(text, example.request.content))
)


def _canonical(number: str) -> str:
    whole = re.sub(r",(?=\d{3}\b)", "", number)
    return whole.lstrip("0") or "0"


def _lower_words(text: str) -> list[str]:
    words = []
    for word in _WORD.findall(text):
        word = word.casefold()
        words += [word, re.sub(r"['’]s$", "", word), *re.split(r"[-'’]", word)]
    return words
