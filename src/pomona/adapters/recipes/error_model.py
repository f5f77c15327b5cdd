"""An error model: clean text in, the same text with mistakes that people make out. Reproducible by seed.

A text gets no error with probability `CLEAN`; otherwise each run of about `WORDS_PER_ERROR` words gets one,
at least one in all. The kind is drawn by `RATES` among the kinds that have a place in the text, and the place
evenly; no token is changed twice. The rates are our own choice, near the shares of learners' and typists'
errors that corpora such as CoNLL-2014 and GitHub Typo show; they are not fitted to any.

Kinds are mistakes in nearly every context, so that the clean text is the one right answer: tense errors, for
instance, are made after "to" and "have" alone ("has went"), prepositions where a word demands another one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from pomona.adapters.recipes import error_words as words
from pomona.adapters.recipes.tables import table

CLEAN = 0.15
WORDS_PER_ERROR = 9

Change = dict[int, str]  # token -> what stands there instead
_TOKEN = re.compile(r"\s+|\w+(?:['’]\w+)*|[^\w\s]")
_VOWEL_SOUND = re.compile(r"(?:[aeio]|u(?!ni|se|su|ti)|hour|hono|heir)", re.IGNORECASE)


def corrupt(text: str, rng: random.Random, *, clean: float = CLEAN) -> str:
    """`text` with errors, or as it is."""
    if rng.random() < clean:
        return text
    tokens = _TOKEN.findall(text)
    count = sum(token[0].isalpha() for token in tokens)
    errors = max(1, sum(rng.random() < 1 / WORDS_PER_ERROR for _ in range(count)))
    changed: Change = {}
    for _ in range(errors):
        change = _one(tokens, changed, rng)
        if change is not None:
            changed |= change
    return "".join(changed.get(i, token) for i, token in enumerate(tokens))


def _one(tokens: list[str], changed: Change, rng: random.Random) -> Change | None:
    """A change of a drawn kind that touches nothing that was changed, or stands next to it."""
    kinds = list(RATES)
    while kinds:
        kind = rng.choices(kinds, [RATES[one][0] for one in kinds])[0]
        near = {i + d for i in changed for d in (-1, 0, 1)}
        found = [change for change in RATES[kind][1](tokens) if not near & change.keys()]
        if found:
            change = rng.choice(found)
            return {i: new(rng) if callable(new) else new for i, new in change.items()}
        kinds.remove(kind)
    return None


Sites = Iterator[dict[int, "str | Callable[[random.Random], str]"]]


def _keyboard(tokens: list[str]) -> Sites:
    for i, token in _words(tokens, 4):
        if token[1:].islower():  # no names in capitals, no abbreviations
            yield {i: lambda rng, token=token: _typo(token, rng)}  # type: ignore[misc]


def _typo(word: str, rng: random.Random) -> str:
    """A neighbour on the keyboard, a letter left out, typed twice, or two letters swapped."""
    for _ in range(20):
        at = rng.randrange(1, len(word))
        letter, kind = word[at], rng.randrange(4)
        if kind == 0 and letter in words.neighbours():
            new = word[:at] + rng.choice(words.neighbours()[letter]) + word[at + 1 :]
        elif kind == 1:
            new = word[:at] + word[at + 1 :]
        elif kind == 2:
            new = word[:at] + letter + word[at:]
        else:
            new = word[: at - 1] + letter + word[at - 1] + word[at + 1 :] if at > 1 else word
        if new != word and not (at == len(word) - 1 and letter == "s"):  # a lost plural s is no typo
            return new
    return word + word[-1]


def _misspelt(tokens: list[str]) -> Sites:
    for i, token in _words(tokens):
        for wrong in words.misspelt().get(token.lower(), ()):
            yield {i: _cased(wrong, token)}


def _homophones(tokens: list[str]) -> Sites:
    groups = words.groups()
    for i, token in _words(tokens):
        lower = token.lower().replace("’", "'")
        for other in groups.get(lower, ()):
            if other != lower:
                yield {i: _cased(other, token)}


def _articles(tokens: list[str]) -> Sites:
    for i, token in _words(tokens):
        if token.lower() in ("a", "an") and i + 2 < len(tokens) and tokens[i + 2].isalpha():
            vowel = _VOWEL_SOUND.match(tokens[i + 2]) is not None
            if vowel == (token.lower() == "an"):
                yield {i: _cased("a" if vowel else "an", token)}
            if token.islower() and i >= 2:
                yield {i: "", i + 1: ""}
        elif token == "the" and i + 2 < len(tokens) and i >= 2:
            yield {i: "", i + 1: ""}


def _pairs(name: str) -> Callable[[list[str]], Sites]:
    def sites(tokens: list[str]) -> Sites:
        other = words.pairs(name)
        for i, token in _words(tokens):
            lower = token.lower().replace("’", "'")
            if lower in other:
                yield {i: _cased(other[lower], token)}

    return sites


def _tense(tokens: list[str]) -> Sites:
    for i, token in _words(tokens):
        before = tokens[i - 2].lower() if i >= 2 else ""
        for base, past, participle in table("irregular"):
            if (
                token == base and before in ("to", "will", "would", "can", "could", "should", "must", "did")
            ) or (token == participle != past and before in ("have", "has", "had", "been", "be")):
                yield {i: past}


def _prepositions(tokens: list[str]) -> Sites:
    for i, token in _words(tokens):
        before = tokens[i - 2].lower() if i >= 2 else ""
        for left, right, *wrong in table("prepositions"):
            if token == right and before == left:
                for other in wrong:
                    yield {i: other}
    for i, token in enumerate(tokens):
        if token == "in" and i + 2 < len(tokens) and re.fullmatch(r"1[5-9]\d\d|20\d\d", tokens[i + 2]):
            yield {i: "at"}


def _punctuation(tokens: list[str]) -> Sites:
    for i, token in enumerate(tokens):
        lower = token.lower().replace("’", "'")
        if lower in words.listed("contractions"):
            yield {i: token.replace("'", "").replace("’", "")}
        elif token == "," and i + 2 < len(tokens):
            if tokens[i + 2] in ("but", "so", "which") or tokens[i - 1] in (
                "However",
                "Therefore",
                "Finally",
            ):
                yield {i: ""}
        elif token in ".?!" and i == len(tokens) - 1:
            yield {i: ""}
        elif re.fullmatch(r"\w+['’]s", token) and token[0].isupper():
            yield {i: token.replace("'", "").replace("’", "")}
        elif i >= 1 and token == " " and tokens[i - 1].isalpha() and tokens[i + 1] in ("that", "because"):
            yield {i: ", "}


def _case(tokens: list[str]) -> Sites:
    for i, token in _words(tokens):
        first = i == 0 or tokens[max(i - 2, 0)] in (".", "?", "!")
        if token == "I" or (first and token[0].isupper() and len(token) > 1) or token in _CAPITALS:
            yield {i: token.lower()}


def _doubled(tokens: list[str]) -> Sites:
    for i, token in _words(tokens):
        if token in words.listed("doubled"):
            yield {i: f"{token} {token}"}


def _missing(tokens: list[str]) -> Sites:
    for i, token in _words(tokens):
        if token in words.listed("droppable") and 2 <= i < len(tokens) - 2 and tokens[i + 1].isspace():
            yield {i: "", i + 1: ""}


def _split(tokens: list[str]) -> Sites:
    compounds = words.listed("compounds")
    for i, token in _words(tokens):
        if token.lower() in compounds:
            cut = _cut(token.lower())
            yield {i: f"{token[:cut]} {token[cut:]}"}


def _cut(word: str) -> int:
    """Where a compound falls apart."""
    for head in ("some", "every", "any", "no", "with", "in", "on", "how", "there", "al", "may", "can", "an"):
        if word.startswith(head):
            return len(head)
    return len(word) // 2


def _joined(tokens: list[str]) -> Sites:
    pairs = {tuple(pair.split()): new for pair, new in table("joined")}
    for i, token in _words(tokens):
        if i + 2 < len(tokens) and (token, tokens[i + 2]) in pairs:
            yield {i: pairs[token, tokens[i + 2]], i + 1: "", i + 2: ""}


def _words(tokens: list[str], shortest: int = 1) -> Iterator[tuple[int, str]]:
    for i, token in enumerate(tokens):
        if token[0].isalpha() and len(token) >= shortest:
            yield i, token


def _cased(word: str, like: str) -> str:
    return word[0].upper() + word[1:] if like[0].isupper() else word


_CAPITALS = frozenset(
    [
        "Monday",
        "Tuesday",
        "Wednesday",
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "January",
        "February",
        "March",
        "April",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
        "English",
        "French",
        "German",
        "Spanish",
        "Europe",
        "America",
        "Africa",
        "Asia",
    ]
)

# kind -> (share of all errors, its places)
RATES: dict[str, tuple[float, Callable[[list[str]], Sites]]] = {
    "keyboard": (0.20, _keyboard),
    "misspelt": (0.12, _misspelt),
    "homophone": (0.11, _homophones),
    "article": (0.11, _articles),
    "agreement": (0.12, _pairs("agreement")),
    "tense": (0.04, _tense),
    "preposition": (0.06, _prepositions),
    "quantity": (0.02, _pairs("quantities")),
    "punctuation": (0.08, _punctuation),
    "case": (0.05, _case),
    "doubled": (0.03, _doubled),
    "missing": (0.02, _missing),
    "split": (0.02, _split),
    "joined": (0.02, _joined),
}
