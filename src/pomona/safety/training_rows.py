"""Safety rows for post-training: refusals that say why, tagged by the taxonomy (report, sections 4.2 and
8.4).

    rows, left_out = refusal_rows(read_set("advbench", data, "train"), seed=0)

Each is a row of `pomona adapt` and `pomona align sft`: messages, source and license, and in `source` also the
category and the template. The refusal is put together out of refusals.yaml: that it is refused, why, and what
can be had instead. Benign look-alikes become rows only where they bring an answer: teaching refusals alone
teaches to refuse. Nothing of a set that is for evaluation alone becomes a row.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pomona.errors import PomonaError
from pomona.safety.prompt_sets import FOR_EVALUATION_ALONE, UNTAGGED, SafetyPrompt
from pomona.safety.taxonomy import taxonomy

FILE = Path(__file__).with_name("refusals.yaml")


@dataclass(frozen=True)
class SafetyRow:
    """template: numbers of the opening, the reason and the offer that the answer is made of."""

    prompt: SafetyPrompt
    answer: str
    template: str

    def to_json(self) -> dict[str, Any]:
        return {
            "messages": [
                {"role": "user", "content": self.prompt.text},
                {"role": "assistant", "content": self.answer},
            ],
            "source": f"{self.prompt.id} {self.prompt.category} {self.template}",
            "license": self.prompt.license,
        }


def refusal_rows(prompts: Sequence[SafetyPrompt], *, seed: int = 0) -> tuple[list[SafetyRow], dict[str, int]]:
    """A row for each harmful prompt with a category, and why others were left out, by reason.

    PomonaError: prompts of a set that is for evaluation alone, or no row at all.
    """
    rows: list[SafetyRow] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.source in FOR_EVALUATION_ALONE:
            raise PomonaError(f"{prompt.source}: is for evaluation alone; a model must not learn from it")
        key = " ".join(prompt.text.casefold().split())
        if key in seen:
            left_out["the same prompt again"] += 1
        elif not prompt.harmful:
            left_out["benign, without an answer"] += 1
        elif prompt.category == UNTAGGED:
            left_out["no category"] += 1
        else:
            rows.append(_row(prompt, seed))
        seen.add(key)
    if not rows:
        raise PomonaError("no harmful prompt with a category is among these; give another set")
    return rows, dict(left_out)


def refusal(category: str, rng: random.Random) -> tuple[str, str]:
    """A refusal for a category (or one of its subcategories), and which templates it is made of."""
    texts = templates()
    mine: Mapping[str, Sequence[str]] = texts["categories"][taxonomy().category(category).id]
    picks = [rng.randrange(len(part)) for part in (texts["openings"], mine["reasons"], mine["offers"])]
    words = (texts["openings"][picks[0]], mine["reasons"][picks[1]], mine["offers"][picks[2]])
    return " ".join(words), "refusals/" + "-".join(map(str, picks))


@cache
def templates() -> dict[str, Any]:
    """What refusals.yaml holds. Every category of the taxonomy has its reasons and offers."""
    import yaml

    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def _row(prompt: SafetyPrompt, seed: int) -> SafetyRow:
    answer, template = refusal(prompt.category, random.Random(f"{seed}/{prompt.id}"))
    return SafetyRow(prompt, answer, template)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]], *, overwrite: bool = False) -> None:
    """For its owner's eyes alone: prompts may be vile. The file appears whole or not at all."""
    if path.exists() and not overwrite:
        raise PomonaError(f"{path}: is there already; give --overwrite, or choose another name")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise PomonaError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
