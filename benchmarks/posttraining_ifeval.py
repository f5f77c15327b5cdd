"""Greedy answers to IFEval's prompts and to held-out ones of our own, and what they are worth.

The answers are kept, where a file is given: they take minutes to make and are worth reading.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import BenchmarkError

if TYPE_CHECKING:
    from pomona.adapters.metrics import Interval
    from pomona.evaluation.ifeval import Case, Result
    from pomona.posttraining.prompts import Prompt


@dataclass(frozen=True)
class Answers:
    """ifeval: the result. reward: the mean on the held-out prompts. length: characters, the mean."""

    ifeval: Result
    reward: float
    length: float


def points_between(ours: Sequence[Result], theirs: Sequence[Result]) -> Interval:
    """Difference in prompt-level strict accuracy, in points, of the means of several results on the same
    prompts; the interval is of resampled prompts."""
    from pomona.adapters.metrics import mean, paired_bootstrap

    def passed(results: Sequence[Result]) -> list[tuple[float, float]]:
        shares = zip(*([all(row) for row in result.strict] for result in results), strict=True)
        return [(100 * statistics.mean(share), 1.0) for share in shares]

    points = mean("points", lambda given, _: float(given))
    return paired_bootstrap(points, passed(ours), passed(theirs))


class Judge:
    """Answers all prompts greedily with an adapter, on an engine that is loaded for it alone: a trainer needs
    the memory in between."""

    def __init__(
        self, base: Path, cases: Sequence[Case], held_out: Sequence[Prompt], tokens: int, threads: int
    ) -> None:
        self.base, self.cases, self.held_out = base, cases, held_out
        self.tokens, self.threads = tokens, threads
        self.texts = [case.prompt for case in cases]
        self.texts += [prompt.messages[-1]["content"] for prompt in held_out]

    def answers(self, adapter: Path | None, kept: Path | None = None) -> Answers:
        """adapter None: the base with its recovery adapter, if it has one. kept: a file to write the answers
        to, or to read them from."""
        if kept is not None and kept.exists():
            return self.worth(self.read(kept))
        answers = self.ask(adapter)
        if kept is not None:
            text = json.dumps({"digest": self.digest(), "answers": answers}, indent=1)
            beside = kept.with_name(f".{kept.name}")
            beside.write_text(text, encoding="utf-8")
            beside.replace(kept)
        return self.worth(answers)

    def ask(self, adapter: Path | None) -> list[str]:
        """In the order of the cases, then of the held-out prompts."""
        from pomona.posttraining.committee import first_committee
        from pomona.posttraining.rollouts import LocalRollOuts, RollOutSampling

        directory = adapter or first_committee(self.base, [])[0].directory
        with LocalRollOuts(self.base, threads=self.threads) as rollouts:
            name = None if directory is None else "judged"
            if directory is not None:
                rollouts.replace("judged", directory)
            ids = [rollouts.render([{"role": "user", "content": text}]) for text in self.texts]
            found = rollouts.sample(ids, name, 1, RollOutSampling(self.tokens, 0.0))
            return [rollouts.text(group[0]) for group in found]

    def read(self, kept: Path) -> list[str]:
        raw = json.loads(kept.read_text(encoding="utf-8"))
        if raw["digest"] != self.digest():
            raise BenchmarkError(f"{kept}: holds answers to other prompts; choose another --work")
        answers: list[str] = raw["answers"]
        return answers

    def digest(self) -> str:
        """Of what is asked and how much may be said."""
        return sha256(json.dumps([self.tokens, *self.texts]).encode()).hexdigest()

    def worth(self, answers: Sequence[str]) -> Answers:
        from pomona.evaluation.ifeval import evaluate
        from pomona.posttraining.rewards import VerifierReward, judge

        count = len(self.cases)
        pairs = list(zip(self.held_out, answers[count:], strict=True))
        reward = statistics.mean(judge(VerifierReward(), pairs).values)
        length = statistics.mean(len(answer) for answer in answers)
        return Answers(evaluate(self.cases, answers[:count]), reward, length)
