"""Rewards of responses: verifiers, a reward model, or any Python function; and what is done when one fails.

    reward = parse_reward("verify")                     # the prompts' own checks
    reward = parse_reward("model:reward-model")         # a directory of `pomona align reward`
    reward = parse_reward("function:mine.politeness")   # f(messages, row) -> number
    judged = judge(reward, [(prompt, text), ...])

A reward is a number per response. What cannot be scored (the function raises, hangs or dies, a value that is
NaN or infinite) gets no reward and is counted by what went wrong; one bad response never ends a run.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pomona.errors import PomonaError
from pomona.posttraining.checks import run_check
from pomona.posttraining.isolated import Isolated
from pomona.posttraining.prompts import Prompt

MAX_FAILURES_SHOWN = 3
_CODE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """value: NaN where there is none; `problem` then says why in one word."""

    value: float
    problem: str = ""
    message: str = ""


class Reward(Protocol):
    """score() is given no empty responses."""

    name: str

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Verdict]: ...

    def close(self) -> None: ...


class ScoresConversations(Protocol):
    """What a reward model offers (reward_model.py): one number per conversation."""

    def score(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> Iterable[float]: ...


@dataclass
class Judged:
    """values: NaN where there is no reward. problems: how many of each kind; examples: the first of them."""

    values: list[float]
    problems: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


def judge(reward: Reward, pairs: Sequence[tuple[Prompt, str]], *, empty_reward: float = 0.0) -> Judged:
    """The rewards in the order of the pairs; empty responses get `empty_reward` and are counted."""
    found = Judged([empty_reward] * len(pairs))
    spoken = [number for number, (_, text) in enumerate(pairs) if text.strip()]
    if len(spoken) < len(pairs):
        found.problems["empty"] = len(pairs) - len(spoken)
    if not spoken:
        return found
    verdicts = reward.score([pairs[number] for number in spoken])
    if len(verdicts) != len(spoken):
        raise PomonaError(f"{reward.name}: gave {len(verdicts)} rewards for {len(spoken)} responses; mend it")
    for number, verdict in zip(spoken, verdicts, strict=True):
        value, problem = verdict.value, verdict.problem
        if not problem and not math.isfinite(value):
            problem = "nan" if math.isnan(value) else "infinite"
        if problem:
            found.problems[problem] += 1
            if len(found.examples) < MAX_FAILURES_SHOWN:
                found.examples.append(f"{problem}: {verdict.message}" if verdict.message else problem)
        found.values[number] = math.nan if problem else value
    return found


class VerifierReward:
    """The share of a prompt's checks that the response passes; with `strict` 1 for all of them, else 0."""

    name = "verify"

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
        return [self._one(prompt, text) for prompt, text in pairs]

    def _one(self, prompt: Prompt, text: str) -> Verdict:
        if not prompt.verify:
            return Verdict(math.nan, "unverifiable", "the prompt has no checks")
        try:
            passed = [
                all_tests_pass(text, one["tests"]) if "tests" in one else run_check(one, text)
                for one in prompt.verify
            ]
        except PomonaError:
            raise  # the check itself is no good, or a library is missing: no response can mend it
        except Exception as error:
            return Verdict(math.nan, "crashed", f"{type(error).__name__}: {error}")
        return Verdict(float(all(passed)) if self.strict else sum(passed) / len(passed))

    def close(self) -> None:
        """Nothing is open."""


def all_tests_pass(text: str, tests: Sequence[str]) -> bool:
    """The response's code (between fences, else all of it) passes every test in the sandbox. A solution that
    hangs fails; that is what it deserves."""
    from pomona.posttraining.sandbox import run_tests

    blocks = _CODE.findall(text)
    outcomes = run_tests("\n\n".join(blocks) if blocks else text, tests)
    return bool(outcomes) and all(one.status == "passed" for one in outcomes)


class FunctionReward:
    """Any Python function f(messages, row) -> number, by its dotted name, in a process of its own."""

    def __init__(self, dotted: str, *, seconds: float = 10.0) -> None:
        self.name = f"function:{dotted}"
        self._function = Isolated(dotted, seconds=seconds)

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
        found = []
        for prompt, text in pairs:
            outcome = self._function.call([prompt.conversation(text), prompt.to_json()])
            if outcome.value is None:
                found.append(Verdict(math.nan, outcome.problem or "error", outcome.message))
            else:
                found.append(Verdict(outcome.value))
        return found

    def close(self) -> None:
        self._function.close()


class ModelReward:
    """A reward model. `close` gives its memory back, so that trainer and reward model can take turns."""

    def __init__(self, name: str, model: ScoresConversations) -> None:
        self.name, self._model = name, model

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Verdict]:
        values = self._model.score([prompt.conversation(text) for prompt, text in pairs])
        return [Verdict(float(value)) for value in values]

    def close(self) -> None:
        with contextlib.suppress(AttributeError):
            self._model.close()  # type: ignore[attr-defined]


def parse_reward(spec: str, *, seconds: float = 10.0) -> Reward:
    """`verify`, `verify:strict`, `model:DIR` or `function:package.module.name`."""
    kind, _, rest = spec.partition(":")
    if kind == "verify" and rest in ("", "strict"):
        return VerifierReward(strict=rest == "strict")
    if kind == "function" and rest:
        return FunctionReward(rest, seconds=seconds)
    if kind == "model" and rest:
        return ModelReward(spec, load_reward_model(Path(rest)))
    raise PomonaError(
        f"reward {spec}: write verify, verify:strict, model:DIR or function:package.module.name"
    )


def load_reward_model(directory: Path) -> ScoresConversations:
    from pomona.posttraining.reward_model import RewardModel

    if not directory.is_dir():
        raise PomonaError(f"{directory}: no such reward model; train one with pomona align reward")
    return RewardModel.load(directory)
