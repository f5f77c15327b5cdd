"""The features, each once, as plans (work.py); `writing` and `aio` make functions of them.

Long texts are cut at paragraphs and sentences (chunks.py). Summaries and points are made of the pieces and
then of what came out (map and reduce); corrected and rewritten pieces are put together again; extracted data
is merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pomona.adapters.edits import Edit, text_edits
from pomona.adapters.tasks.extract import FACTS, Facts
from pomona.adapters.tasks.key_points import KeyPoints
from pomona.adapters.tasks.prioritize import URGENT
from pomona.adapters.tasks.registry import get
from pomona.adapters.tasks.reply import Replies
from pomona.adapters.tasks.task import Request
from pomona.errors import PomonaError
from pomona.features.chunks import Chunk, join, split
from pomona.features.results import (
    Corrected,
    Extracted,
    Points,
    Priorities,
    Rewritten,
    Suggestions,
    Summary,
)
from pomona.features.router import Consent, Router
from pomona.features.work import Batch, Done, Plan, open_desk
from pomona.runtime.backend import LanguageModel
from pomona.runtime.output import Output, wanted

# Tokens of content in one request. Small models lose their thread in long texts, long before the context is
# full.
SUMMARY_TOKENS = 1024
POINTS_TOKENS = 768
EXTRACT_TOKENS = 768
PROOFREAD_TOKENS = 160
REWRITE_TOKENS = 224
MOST_POINTS = 12
_ROUNDS = 8  # of reducing: each leaves at most a third


def summarize(
    text: str,
    *,
    style: str = "one line",
    kind: str = "e-mail",
    model: LanguageModel | Router | None = None,
    adapter: str | None = None,
    consent: Consent = None,
) -> Plan[Summary]:
    """The text in "one line" or "three sentences". kind: "e-mail", "thread" or "notifications"."""
    task = get("summarize")
    task.checked(Request(text, style, kind))
    desk = open_desk(task, text, model, adapter, consent)
    limit = desk.limit(SUMMARY_TOKENS)
    answers: list[Done] = []
    pieces = split(text, desk.tokens, limit)
    parts = len(pieces)
    for _ in range(_ROUNDS):
        if len(pieces) == 1:
            break
        done = yield Batch(desk, tuple(Request(piece.text, "three sentences", kind) for piece in pieces))
        answers += done
        shorter = "\n\n".join(answer.value for answer in done if answer.value)
        if not shorter or len(shorter) >= sum(len(piece.text) for piece in pieces):
            raise PomonaError(
                "summarize: the model's summaries are no shorter than the text; use another model"
            )
        pieces = split(shorter, desk.tokens, limit)
    [last] = yield Batch(desk, (Request(pieces[0].text, style, kind),))
    answers.append(last)
    return Summary(last.value, desk.origin(answers), parts, last.finish_reason == "stop")


def proofread(
    text: str,
    *,
    model: LanguageModel | Router | None = None,
    adapter: str | None = None,
    consent: Consent = None,
) -> Plan[Corrected]:
    """The text with its mistakes corrected, and the edits that make it so."""
    task = get("proofread")
    task.checked(Request(text))
    desk = open_desk(task, text, model, adapter, consent)
    pieces = split(text, desk.tokens, desk.limit(PROOFREAD_TOKENS))
    done = yield Batch(desk, tuple(Request(piece.text) for piece in pieces))
    texts = [
        answer.value if _is_correction(piece.text, answer) else piece.text
        for piece, answer in zip(pieces, done, strict=True)
    ]
    kept = sum(not _is_correction(piece.text, answer) for piece, answer in zip(pieces, done, strict=True))
    corrected, edits = _with_edits(pieces, texts)
    return Corrected(corrected, edits, desk.origin(done), len(pieces), kept)


def rewrite(
    text: str,
    *,
    tone: str = "friendly",
    model: LanguageModel | Router | None = None,
    adapter: str | None = None,
    consent: Consent = None,
) -> Plan[Rewritten]:
    """The text in a "friendly", "professional" or "concise" tone."""
    task = get("rewrite")
    task.checked(Request(text, tone))
    desk = open_desk(task, text, model, adapter, consent)
    pieces = split(text, desk.tokens, desk.limit(REWRITE_TOKENS))
    done = yield Batch(desk, tuple(Request(piece.text, tone) for piece in pieces))
    rewritten, edits = _with_edits(pieces, [answer.value for answer in done])
    complete = all(answer.finish_reason == "stop" for answer in done)
    return Rewritten(rewritten, edits, desk.origin(done), len(pieces), complete)


def key_points(
    text: str,
    *,
    model: LanguageModel | Router | None = None,
    adapter: str | None = None,
    consent: Consent = None,
) -> Plan[Points]:
    """The points of the text, at most 7 of each piece of a long one and 12 in all."""
    task = get("key_points")
    task.checked(Request(text))
    desk = open_desk(task, text, model, adapter, consent)
    answers: list[Done] = []
    pieces = split(text, desk.tokens, desk.limit(POINTS_TOKENS))
    parts = len(pieces)
    points: list[str] = []
    for _ in range(_ROUNDS):
        done = yield Batch(desk, tuple(Request(piece.text) for piece in pieces))
        answers += done
        points = _different(point for answer in done for point in _instance(KeyPoints, answer).points)
        if len(points) <= MOST_POINTS:
            break
        shorter = split("\n".join(points), desk.tokens, desk.limit(POINTS_TOKENS))
        if len(shorter) >= len(pieces) > 1:
            break
        pieces = shorter
    return Points(tuple(points[:MOST_POINTS]), desk.origin(answers), parts)


def replies(
    mail: str,
    *,
    model: LanguageModel | Router | None = None,
    adapter: str | None = None,
    consent: Consent = None,
) -> Plan[Suggestions]:
    """Three short replies to a mail, and the questions that it asks. Of a long one the beginning and the end
    are read: there people say what they want."""
    task = get("reply")
    task.checked(Request(mail))
    desk = open_desk(task, mail, model, adapter, consent)
    pieces = split(mail, desk.tokens, desk.limit(SUMMARY_TOKENS) // 2)
    content = pieces[0].text if len(pieces) == 1 else f"{pieces[0].text}\n\n{pieces[-1].text}"
    [answer] = yield Batch(desk, (Request(content),))
    value = _instance(Replies, answer)
    return Suggestions(tuple(value.replies), tuple(value.questions), desk.origin([answer]))


def prioritize(
    notifications: Sequence[str],
    *,
    model: LanguageModel | Router | None = None,
    adapter: str | None = None,
    consent: Consent = None,
) -> Plan[Priorities]:
    """Which notifications are urgent. Each is looked at alone, all of them in one batch."""
    if isinstance(notifications, str) or not notifications:
        raise PomonaError("prioritize: give a list of notifications, at least one")
    task = get("prioritize")
    for text in notifications:
        task.checked(Request(text))
    desk = open_desk(task, "\n".join(notifications), model, adapter, consent)
    limit = desk.limit(SUMMARY_TOKENS)
    requests = tuple(Request(split(text, desk.tokens, limit)[0].text) for text in notifications)
    done = yield Batch(desk, requests)
    return Priorities(tuple(answer.value == URGENT for answer in done), desk.origin(done))


def extract(
    text: str,
    *,
    schema: Any = None,
    model: LanguageModel | Router | None = None,
    adapter: str | None = None,
    consent: Consent = None,
) -> Plan[Extracted]:
    """What `schema` names: a Pydantic class or another Python type, or a JSON schema as a dict; by default
    contacts and events (`pomona.adapters.tasks.extract.Facts`).
    """
    task = get("extract")
    output = wanted(schema=Facts if schema is None else schema)
    json_schema = FACTS if schema is None else output.schema
    assert json_schema is not None
    task.checked(Request(text, schema=json_schema))
    desk = open_desk(task, text, model, adapter, consent)
    pieces = split(text, desk.tokens, desk.limit(EXTRACT_TOKENS))
    done = yield Batch(desk, tuple(Request(piece.text, schema=json_schema) for piece in pieces))
    merged = done[0].value
    for answer in done[1:]:
        merged = merge(merged, answer.value)
    return Extracted(_validated(output, merged), desk.origin(done), len(pieces))


# --- parts of plans


def _is_correction(piece: str, answer: Done) -> bool:
    """Whether an answer can be the corrected piece: complete, and of about its length."""
    text = answer.value
    if answer.finish_reason == "length" or not text:
        return False
    slack = 16
    return len(piece) / 2 - slack <= len(text) <= len(piece) * 1.5 + slack


def _with_edits(pieces: Sequence[Chunk], texts: Sequence[str]) -> tuple[str, tuple[Edit, ...]]:
    """The text put together again, and the edits at their places in the whole."""
    edits: list[Edit] = []
    at = 0
    for piece, text in zip(pieces, texts, strict=True):
        at += len(piece.before)
        found = text_edits(piece.text, text)
        edits += [replace(edit, start=edit.start + at, end=edit.end + at) for edit in found]
        at += len(piece.text)
    return join(pieces, texts), tuple(edits)


def _different(points: Iterable[str]) -> list[str]:
    found: dict[str, str] = {}
    for point in points:
        found.setdefault(" ".join(point.casefold().split()), point)
    return list(found.values())


def _instance(kind: Any, answer: Done) -> Any:
    return answer.value if isinstance(answer.value, kind) else kind.model_validate(answer.value)


def merge(first: Any, second: Any) -> Any:
    """Data of two pieces: lists are joined without repetitions, of two values the first that says
    something.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [*first, *(key for key in second if key not in first)]
        return {key: merge(first.get(key), second.get(key)) for key in keys}
    if isinstance(first, list) and isinstance(second, list):
        joined: list[Any] = []
        for item in (*first, *second):
            joined += [] if item in joined else [item]
        return joined
    return second if first in (None, "", [], {}) else first


def _validated(output: Output, value: Any) -> Any:
    """The merged value under the schema again: two good pieces can make too long a list."""
    if output.python is not None:
        from pydantic import ValidationError

        from pomona.runtime.transcript import first_problem

        try:
            return output.python.validate_python(value)
        except ValidationError as error:
            raise PomonaError(
                f"extract: the data of all pieces does not fit the schema ({first_problem(error)}); relax it"
            ) from error
    import jsonschema  # type: ignore[import-untyped]

    try:
        jsonschema.validate(value, output.schema)
    except jsonschema.ValidationError as error:
        raise PomonaError(
            f"extract: the data of all pieces does not fit the schema ({error.message}); relax it"
        ) from error
    return value
