"""What a product does with verdicts: thresholds per category and feature, lists of phrases, what is told.

    version: 1
    suspects: 0.2
    default:
      input: {false_positives: 0.05}
      output: {false_positives: 0.05}
      patterns: [common]
    features:
      summarize:
        input: off
        output: {threshold: 0.9, categories: {graphic_violence: off, weapons: 0.5}}

A feature that is not named has the default. Unknown keys are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from pomona.errors import PomonaError
from pomona.posttraining.options import load_yaml
from pomona.safety.guardrail import Verdict
from pomona.safety.guardrail_head import GuardrailHead, Level, Share, Side
from pomona.safety.patterns import Match, PatternList, Patterns
from pomona.safety.taxonomy import taxonomy

MESSAGE = "I cannot help with this. The {side} was taken for {category}."
MAX_PATTERN_LISTS = 32


def _as_level(value: Any) -> Any:
    """0.20 of a YAML file is "0.2"."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if number else value


AnyLevel = Annotated[Level, BeforeValidator(_as_level)]
Suspects = Annotated[Literal["0.01", "0.02", "0.05", "0.1", "0.2", "1"], BeforeValidator(_as_level)]


@dataclass(frozen=True)
class Refusal:
    """Why a text does not pass. category: an id of the taxonomy. harm, threshold: None where a phrase was
    found, which is `phrase`."""

    feature: str
    side: Side
    category: str
    message: str
    harm: float | None = None
    threshold: float | None = None
    phrase: str | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


class Blocked(PomonaError):  # noqa: N818 - it is what happened to the text
    """A text was refused by the guardrail; `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"guardrail: {refusal.message}")
        self.refusal = refusal


class Rule(BaseModel):
    """Of one side of a feature. threshold: harm from which a text is refused; without it the guardrail's own
    for `false_positives`, the share of harmless texts that it may refuse. categories: thresholds of their
    own; `off` takes the category's share out of the harm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: Share | None = None
    false_positives: AnyLevel = "0.05"
    categories: dict[str, Share | Literal[False]] = {}

    @field_validator("categories")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        known = [category.id for category in taxonomy().categories]
        for name in value:
            if name not in known:
                raise ValueError(f"{name!r} is no category; there are {', '.join(known)}")
        return value

    def exceeded(self, verdict: Verdict, head: GuardrailHead) -> tuple[str, float, float] | None:
        """(category, harm, threshold) of a verdict that is too bad."""
        judged = [(name, p) for name, p in verdict.categories if self.categories.get(name) is not False]
        if not judged:
            return None
        category = judged[0][0]
        own = self.categories.get(category)
        if own is None or own is False:
            own = self.threshold
        limit = head.threshold(verdict.side, self.false_positives) if own is None else own
        harm = sum(p for _, p in judged)
        return (category, harm, limit) if harm >= limit else None


class FeatureRules(BaseModel):
    """input, output: `off` judges none. patterns: lists of phrases, by name or file. message: what the user
    is told; {side} and {category} are filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Rule | Literal[False] = Rule()
    output: Rule | Literal[False] = Rule()
    patterns: Annotated[tuple[str, ...], Field(max_length=MAX_PATTERN_LISTS)] = ()
    message: Annotated[str, Field(min_length=1, max_length=1000)] = MESSAGE

    @field_validator("message")
    @classmethod
    def _fillable(cls, value: str) -> str:
        try:
            value.format(side="", category="")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError("may hold {side} and {category}, and no other braces") from error
        return value

    @cached_property
    def lists(self) -> Patterns:
        """PomonaError: a list that cannot be read."""
        return Patterns([PatternList.read(name) for name in self.patterns])


class GuardrailPolicy(BaseModel):
    """suspects: answers are judged by the model where the input is among this share of harmless inputs, the
    most suspicious ones; 1 judges every answer. segment: tokens of an answer between two checks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    suspects: Suspects = "1"
    segment: Annotated[int, Field(ge=16, le=1024)] = 64
    default: FeatureRules = FeatureRules(patterns=("common",))
    features: Annotated[dict[str, FeatureRules], Field(max_length=256)] = {}

    @classmethod
    def read(cls, path: Path | str) -> GuardrailPolicy:
        """PomonaError: not readable, an unknown key, a list of phrases that is not there."""
        path = Path(path)
        try:
            policy = cls.model_validate(load_yaml(path))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, problem["loc"]))
            raise PomonaError(f"{path}: {place}: {problem['msg']}; see docs/guardrail.md") from error
        policy.check_lists()
        return policy

    def check_lists(self) -> None:
        """Reads all lists of phrases, so that a wrong one is found before the first request."""
        for rules in (self.default, *self.features.values()):
            assert rules.lists is not None

    def of(self, feature: str) -> FeatureRules:
        return self.features.get(feature, self.default)

    def suspicious(self, verdict: Verdict | None, head: GuardrailHead) -> bool:
        """Whether the answer to this input is to be judged by the model. An input that was not judged is."""
        if verdict is None or self.suspects == "1":
            return True
        return verdict.harm >= head.threshold("input", self.suspects)

    def refused(self, feature: str, verdict: Verdict, head: GuardrailHead) -> Refusal | None:
        rules = self.of(feature)
        rule = rules.input if verdict.side == "input" else rules.output
        found = None if rule is False else rule.exceeded(verdict, head)
        if found is None:
            return None
        category, harm, limit = found
        return Refusal(feature, verdict.side, category, _told(rules, verdict.side, category), harm, limit)

    def denied(self, feature: str, side: Side, text: str) -> Refusal | None:
        """By the lists of phrases."""
        match = self.of(feature).lists.denied(text, side)
        return None if match is None else self.matched(feature, side, match)

    def matched(self, feature: str, side: Side, match: Match) -> Refusal:
        told = _told(self.of(feature), side, match.category)
        return Refusal(feature, side, match.category, told, phrase=match.phrase)


def _told(rules: FeatureRules, side: Side, category: str) -> str:
    title = taxonomy().category(category).title
    name = {"input": "request", "output": "answer"}[side]
    return rules.message.format(side=name, category=title[0].lower() + title[1:])
