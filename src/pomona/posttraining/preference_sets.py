"""Public preference pairs in our schema: `hh_rlhf` (harmlessness) and `dpo_pairs`, in the folder POMONA_DATA.

Neither set says by how much a response is better, so a level is assigned by a rule of ours: by how different
the two responses are. People who label such pairs tend to be sure where one answers and the other does
something else, and unsure where both say nearly the same. The rule looks at nothing else: not at which one
is preferred, so it cannot leak the answer. Let `s` be the share of words that both responses have (F1 of
their bags of lower-case words):

    s < 0.15  significantly_better      s < 0.25  better      s < 0.4  slightly_better      else  negligibly

The bounds are ours. Such levels are a stand-in: they can show that the training uses a level, not that
people's levels would be worth as much.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from pomona.adapters.data import Problem
from pomona.data.public_sets import MAX_BYTES, data_folder, read
from pomona.errors import PomonaError
from pomona.posttraining.preferences import LEVELS, Level, Preference, PreferenceReport, Response, checked

BOUNDS = (0.15, 0.25, 0.4)  # of the shared words, below which the level is LEVELS[0], [1], [2]
LICENSES = {"hh_rlhf": "MIT", "dpo_pairs": "Apache-2.0"}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant", "human": "user", "gpt": "assistant", "system": "system"}


def public_preferences(name: str, folder: Path | None = None) -> tuple[list[Preference], PreferenceReport]:
    """The pairs of `hh_rlhf` or `dpo_pairs`, duplicates and contradictions left out and counted.

    Raises PomonaError: no such set, no folder, a file of another form.
    """
    if name not in LICENSES:
        raise PomonaError(f"{name}: no preference set of that name; choose of {', '.join(LICENSES)}")
    found = (_hh_rlhf if name == "hh_rlhf" else _dpo_pairs)(data_folder(folder))
    report = PreferenceReport(name, "", read=len(found))
    return checked([row for row in found if _sound(row, report)], report), report


def assigned_level(chosen: str, rejected: str) -> Level:
    """The rule above."""
    share = shared_words(chosen, rejected)
    return next((level for level, bound in zip(LEVELS, BOUNDS, strict=False) if share < bound), LEVELS[-1])


def shared_words(a: str, b: str) -> float:
    """F1 of two bags of lower-case words, 0 .. 1."""
    bags = [Counter(re.findall(r"\w+", text.lower())) for text in (a, b)]
    total = sum(bag.total() for bag in bags)
    return 2 * (bags[0] & bags[1]).total() / total if total else 0.0


def _sound(row: Preference, report: PreferenceReport) -> bool:
    assert row.rejected is not None
    kind = None
    if not row.prompt or row.prompt[-1]["role"] != "user" or not all(m["content"] for m in row.prompt):
        kind = "wrong schema"
    elif not row.chosen.text:
        kind = "empty preferred" if row.rejected.text else "empty"
    elif row.chosen.text == row.rejected.text:
        kind = "same responses"
    if kind is not None:
        report.problems.append(Problem(kind, row.line, report.KINDS[kind]))
    return kind is None


def _pair(line: int, name: str, prompt: list[dict[str, str]], chosen: str, rejected: str) -> Preference:
    level = assigned_level(chosen, rejected)
    return Preference(line, tuple(prompt), Response(chosen), Response(rejected), level, LICENSES[name], name)


def _hh_rlhf(folder: Path) -> list[Preference]:
    """Dialogues of Human and Assistant; both sides share all but the last answer. A dialogue whose sides part
    earlier is cut where they do."""
    path = folder / "hh_rlhf" / "harmless-base.test.jsonl.gz"
    try:
        with gzip.open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, ValueError) as error:
        raise PomonaError(f"{path}: cannot be read ({error}); get the data set hh_rlhf again") from error
    if len(raw) > MAX_BYTES:
        raise PomonaError(f"{path}: is larger than 64 MiB, which it is not; get it again")
    rows = []
    for line, text in enumerate(raw.decode("utf-8", "replace").splitlines(), start=1):
        try:
            given = json.loads(text)
            sides = [_turns(given[key]) for key in ("chosen", "rejected")]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise PomonaError(f"{path}, line {line}: has another form ({error!r}); get it again") from error
        at = 0
        while at < min(map(len, sides)) - 1 and sides[0][at] == sides[1][at]:
            at += 1
        chosen, rejected = (side[at]["content"] if at < len(side) else "" for side in sides)
        rows.append(_pair(line, "hh_rlhf", sides[0][:at], chosen, rejected))
    return rows


def _turns(text: str) -> list[dict[str, str]]:
    _, *parts = _TURN.split(text)
    return [
        {"role": _ROLES[who], "content": what.strip()}
        for who, what in zip(parts[::2], parts[1::2], strict=True)
    ]


def _dpo_pairs(folder: Path) -> list[Preference]:
    path = folder / "dpo_pairs" / "dpo_en_demo.json"
    try:
        given: list[dict[str, Any]] = json.loads(read(path))
        return [
            _pair(
                number,
                "dpo_pairs",
                [
                    {"role": _ROLES[turn["from"]], "content": str(turn["value"]).strip()}
                    for turn in row["conversations"]
                    if str(turn["value"]).strip()  # an empty system message is none
                ],
                str(row["chosen"]["value"]).strip(),
                str(row["rejected"]["value"]).strip(),
            )
            for number, row in enumerate(given, start=1)
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PomonaError(f"{path}: is no list of pairs ({error!r}); get the file again") from error
