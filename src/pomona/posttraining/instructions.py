"""Training prompts whose answers a program can verify: a small task, and one to three conditions on its form.

    pomona align prompts prompts.jsonl --rows 500

Every prompt carries its checks (checks.py). The kinds of conditions are those of the literature; all wordings
and topics are ours (instruction_texts.py), and no training prompt may share a run of words with a prompt of a
given evaluation set: that is checked by n-grams.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pomona.errors import PomonaError
from pomona.posttraining.instruction_texts import CONDITIONS, ENDINGS, FORMS, OPENINGS, TOPICS, WORDS
from pomona.posttraining.prompts import Prompt

N_GRAM = 8  # words in a row that a training prompt may not share with an evaluation prompt
MAX_CONDITIONS = 3

# At most one of each group in a prompt: they contradict each other, or one gives the other away.
_GROUPS = (
    {"lowercase", "uppercase", "capital_words", "starts_with", "ends_with"},
    {"bullets", "paragraphs", "sections", "two_responses", "json_format", "highlights"},
    {"json_format", "quotation", "title", "starts_with", "ends_with", "postscript"},
    {"json_format", "no_comma"},
    {"json_format", "words", "sentences", "paragraphs"},
    {"keywords", "forbidden_words", "keyword_count"},
    {"words", "sentences", "bullets"},
    {"two_responses", "quotation"},
    {"two_responses", "paragraphs", "ends_with", "starts_with"},
    {"lowercase", "postscript"},
    {"letter_count", "uppercase"},
)
_LETTERS = "aeiortnslhd"


@dataclass(frozen=True)
class InstructionOptions:
    """kinds: of conditions, all by default. max_conditions: in one prompt."""

    rows: int = 500
    kinds: tuple[str, ...] = ()
    max_conditions: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= 1_000_000:
            raise PomonaError(f"rows = {self.rows}: must lie in 1 .. 1,000,000")
        if not 1 <= self.max_conditions <= MAX_CONDITIONS:
            raise PomonaError(f"max_conditions = {self.max_conditions}: must lie in 1 .. {MAX_CONDITIONS}")
        for kind in self.kinds:
            if kind not in CONDITIONS:
                raise PomonaError(f"condition {kind!r}: is not known; choose of {', '.join(CONDITIONS)}")


def make_prompts(options: InstructionOptions, *, avoid: NGrams | None = None) -> list[Prompt]:
    """Different prompts, the same for the same options. avoid: prompts that share a run of words with it are
    made anew. PomonaError: so few conditions that there are not enough different prompts."""
    rng = random.Random(options.seed)
    kinds = options.kinds or tuple(CONDITIONS)
    found: dict[str, Prompt] = {}
    tries = 0
    while len(found) < options.rows:
        tries += 1
        if tries > 20 * options.rows + 1000:
            raise PomonaError(
                f"only {len(found):,} different prompts of {options.rows:,} could be made; ask for fewer"
            )
        prompt = _prompt(rng, kinds, options.max_conditions)
        text = prompt.messages[0]["content"]
        if text not in found and (avoid is None or not avoid.shared(text)):
            found[text] = prompt
    return list(found.values())


def _prompt(rng: random.Random, kinds: Sequence[str], most: int) -> Prompt:
    topic, other = rng.sample(TOPICS, 2)
    task = rng.choice(FORMS).format(topic=topic, other=other)
    chosen: list[str] = []
    for kind in rng.sample(kinds, len(kinds)):
        if len(chosen) == rng.randint(1, most) and chosen:
            break
        if not any(kind in group and group & set(chosen) for group in _GROUPS):
            chosen.append(kind)
        if len(chosen) == most:
            break
    texts, checks = zip(*(_condition(rng, kind) for kind in chosen), strict=True)
    parts = [task, *texts]
    text = " ".join(parts) if rng.random() < 0.8 else "\n".join(parts)
    return Prompt(({"role": "user", "content": text},), tuple(checks))


def _condition(rng: random.Random, kind: str) -> tuple[str, dict[str, Any]]:
    """Its wording and its check."""
    check: dict[str, Any] = {"check": kind}
    shown: dict[str, Any] = {}
    if kind in ("bullets", "highlights", "placeholders"):
        check["count"] = rng.randint(1 if kind != "bullets" else 2, 5)
    elif kind in ("paragraphs", "sections"):
        check["count"] = rng.randint(2, 4)
        if kind == "sections":
            check["name"] = rng.choice(("Part", "Chapter", "Scene", "Step"))
    elif kind in ("words", "sentences", "capital_words", "keyword_count", "letter_count"):
        check |= _amount(rng, kind)
        if kind == "keyword_count":
            check["word"] = rng.choice(WORDS)
        elif kind == "letter_count":
            check["letter"] = rng.choice(_LETTERS)
    elif kind in ("keywords", "forbidden_words"):
        check["words"] = rng.sample(WORDS, rng.randint(1, 3))
        shown["listed"] = _listed(check["words"])
    elif kind == "postscript":
        check["marker"] = rng.choice(("P.S.", "P.P.S"))
    elif kind == "ends_with":
        check["phrase"] = rng.choice(ENDINGS)
    elif kind == "starts_with":
        check["phrase"] = rng.choice(OPENINGS)
    return rng.choice(CONDITIONS[kind]).format(**check, **shown), check


def _amount(rng: random.Random, kind: str) -> dict[str, Any]:
    least, most, step = {
        "words": (20, 80, 10),
        "sentences": (2, 6, 1),
        "capital_words": (1, 5, 1),
        "keyword_count": (2, 4, 1),
        "letter_count": (2, 8, 1),
    }[kind]
    relations = ("at least", "at most", "less than") if kind in ("words", "sentences") else ("at least",)
    return {"relation": rng.choice(relations), "count": rng.randrange(least, most + 1, step)}


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


# --- what may not be shared


class NGrams:
    """Runs of N words of some texts, in small letters without marks."""

    def __init__(self, texts: Iterable[str], n: int = N_GRAM) -> None:
        self.n = n
        self._seen = {gram for text in texts for gram in self._grams(text)}

    def shared(self, text: str) -> bool:
        return any(gram in self._seen for gram in self._grams(text))

    def _grams(self, text: str) -> Iterator[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        for start in range(len(words) - self.n + 1):
            yield tuple(words[start : start + self.n])


def evaluation_prompts(folder: Path) -> NGrams:
    """Of IFEval's prompts in a folder of public data sets. PomonaError: they are not there."""
    path = folder / "ifeval" / "input_data.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return NGrams(str(row["prompt"]) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PomonaError(
            f"{path}: IFEval's prompts cannot be read ({error!r}); get the file again"
        ) from error
