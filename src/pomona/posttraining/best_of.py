"""The best-of-N curve of a reward model: what a policy gains if the model picks among its responses.

The report uses it to choose checkpoints (section 4.3). A row of the file is one prompt with its responses;
`gold` (a verifier's results, or people's) says what each of them is worth:

    {"prompt": "...", "responses": ["...", "..."], "gold": [1, 0]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pomona.adapters.data import BadRowError, Message, parse_line, parse_messages, read_lines
from pomona.errors import PomonaError
from pomona.line_chart import Line, line_chart
from pomona.posttraining.reward_model import RewardModel
from pomona.posttraining.reward_report import best_of_n

MAX_RESPONSES = 1024


@dataclass(frozen=True)
class Candidates:
    """One prompt and its responses. gold: what each is worth, None where nobody knows."""

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    gold: tuple[float, ...] | None = None


@dataclass(frozen=True)
class BestOfCurve:
    """points: (N, mean reward of the pick, mean gold of the pick, prompts with at least N responses)."""

    points: tuple[tuple[int, float, float | None, int], ...]
    not_finite: int = 0

    def to_json(self) -> dict[str, Any]:
        names = ("n", "reward", "gold", "prompts")
        return {
            "version": 1,
            "points": [dict(zip(names, point, strict=True)) for point in self.points],
            "not_finite": self.not_finite,
        }

    def plot(self, title: str) -> str:
        """SVG: the reward of the pick, and its gold where it is known."""
        lines = [_line("reward", [(n, reward, prompts) for n, reward, _, prompts in self.points])]
        gold = [(n, gold, prompts) for n, _, gold, prompts in self.points if gold is not None]
        if gold:
            lines.append(_line("gold", gold))
        return line_chart(title, "responses that the pick is made of", "mean of the picks", lines)


def _line(name: str, points: Sequence[tuple[int, float, int]]) -> Line:
    places = tuple((float(n), value) for n, value, _ in points)
    return Line(name, places, dots=True, hints=tuple(f"{prompts} prompts" for _, _, prompts in points))


def curve_of(rows: Sequence[Candidates], rewards: Sequence[Sequence[float]]) -> BestOfCurve:
    """rewards: of every row's responses. Each row counts for the N that it has finite rewards for."""
    if not rows:
        raise PomonaError("best of N: no prompts; give some")
    found: dict[int, list[tuple[float, float | None]]] = {}
    not_finite = 0
    for row, values in zip(rows, rewards, strict=True):
        broken = int((~np.isfinite(values)).sum())
        not_finite += broken
        if broken == len(values):
            continue
        gold = [None] * len(values) if row.gold is None else [g for _, g in best_of_n(values, row.gold)]
        for (n, reward), worth in zip(best_of_n(values), gold, strict=False):
            found.setdefault(n, []).append((reward, worth))
    points = []
    for n in sorted(found):
        known = [worth for _, worth in found[n] if worth is not None]
        mean = float(np.mean(known)) if known else None
        points.append((n, float(np.mean([reward for reward, _ in found[n]])), mean, len(found[n])))
    return BestOfCurve(tuple(points), not_finite)


def curve_of_file(model: str | Path, path: Path) -> BestOfCurve:
    """The curve of a reward model on the rows of a .jsonl file. PomonaError: a bad row, with its line."""
    rows = read_candidates(path)
    scorer = RewardModel.load(model)
    scored = scorer.score(
        [[*row.prompt, {"role": "assistant", "content": text}] for row in rows for text in row.responses]
    )
    ends = np.cumsum([len(row.responses) for row in rows])[:-1]
    return curve_of(rows, [part.tolist() for part in np.split(scored, ends)])


def read_candidates(path: Path) -> list[Candidates]:
    """PomonaError: not readable, or a bad row."""
    if not path.is_file():
        raise PomonaError(f"{path}: no such file; give rows of prompt and responses")
    rows = []
    for line, raw in read_lines(path):
        try:
            rows.append(_candidates(parse_line(raw)))
        except BadRowError as error:
            raise PomonaError(f"{path}, line {line}: {error.what}; mend the row") from error
    if not rows:
        raise PomonaError(f"{path}: holds no row; give some")
    return rows


def _candidates(row: dict[str, Any]) -> Candidates:
    if unknown := sorted(set(row) - {"prompt", "responses", "gold"}):
        raise BadRowError("wrong schema", f"{unknown[0]!r} is no key of such a row")
    prompt = parse_messages(row.get("prompt"), "user")
    responses, gold = row.get("responses"), row.get("gold")
    if not prompt or not isinstance(responses, list) or not 1 <= len(responses) <= MAX_RESPONSES:
        raise BadRowError("wrong schema", "needs a prompt and a list of responses")
    if not all(isinstance(text, str) for text in responses):
        raise BadRowError("wrong schema", "a response is no text")
    if gold is not None:
        numbers = isinstance(gold, list) and all(type(g) in (int, float, bool) for g in gold)
        if not numbers or len(gold) != len(responses):
            raise BadRowError("wrong schema", "gold must have one number for every response")
        gold = tuple(float(g) for g in gold)
    return Candidates(tuple(prompt), tuple(responses), gold)
