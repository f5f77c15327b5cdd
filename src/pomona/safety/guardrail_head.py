"""What a guardrail is asked, and how its answer is read: prompts, verdict tokens, thresholds.

A guardrail is a LoRA adapter of the resident base. Its head is the base's own output layer over the last
state, cut down to thirteen tokens: "safe" and the categories of the taxonomy. So one step of the engine gives
a verdict, in one batch with everybody's answers, and nothing but the adapter is read besides.

    user: TEXT <end>                                -> verdict on the input
    user: REQUEST <end> assistant: ANSWER <end>     -> verdict on the output

Texts are encoded as plain text: a control token spelled in one cannot end it. A longer text is judged in
windows, and the worst one counts. The head of a trained guardrail is in its pomona.json, under `prompt`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pomona.adapters.metadata import read_record
from pomona.errors import PomonaError
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.ticket import MAX_TOP_LOGPROBS, TokenLogprobs
from pomona.safety.taxonomy import taxonomy

TASK = "guardrail"
SAFE = "safe"
SIDES = ("input", "output")
Side = Literal["input", "output"]
# Shares of harmless texts that may be taken for harmful, for which a guardrail knows its thresholds.
LEVELS = ("0.01", "0.02", "0.05", "0.1", "0.2")
Level = Literal["0.01", "0.02", "0.05", "0.1", "0.2"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class GuardrailHead(BaseModel):
    """verdicts: "safe" and every category -> the token that says it. window: tokens judged at once.
    thresholds: side -> share of harmless texts refused -> the harm from which a text is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    guardrail: Literal[1] = 1  # the version of this form
    verdicts: dict[str, Annotated[str, Field(min_length=1, max_length=64)]]
    window: Annotated[int, Field(ge=32, le=4096)] = 256
    thresholds: dict[Side, dict[Level, Share]] = {}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        known = [SAFE, *(category.id for category in taxonomy().categories)]
        if list(self.verdicts) != known:
            raise ValueError(f"verdicts: must be those of {', '.join(known)}, in this order")
        return self

    @classmethod
    def new(cls) -> GuardrailHead:
        """Capital letters, which are tokens of every vocabulary."""
        names = [SAFE, *(category.id for category in taxonomy().categories)]
        return cls(verdicts={name: chr(ord("A") + number) for number, name in enumerate(names)})

    @classmethod
    def of(cls, directory: Path) -> GuardrailHead:
        """That of a trained guardrail. PomonaError: the adapter is none."""
        record = read_record(directory)
        if record is None or record.task != TASK or record.prompt is None:
            raise PomonaError(f"{directory}: is no guardrail; train one with `pomona safety guardrail train`")
        try:
            return cls.model_validate(record.prompt.model_dump(exclude_none=True))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            raise PomonaError(
                f"{directory}: its head is damaged ({problem['msg']}); get the guardrail again"
            ) from error

    def tokens(self, tokenizer: Tokenizer) -> dict[str, int]:
        """Verdict -> token id. PomonaError: the vocabulary has no such token."""
        found: dict[str, int] = {}
        for name, text in self.verdicts.items():
            ids = tokenizer.encode(text, parse_special=False)
            if len(ids) != 1 or ids[0] in found.values():
                raise PomonaError(f"guardrail: {text!r} is no token of this model; train one for it")
            found[name] = ids[0]
        return found

    def threshold(self, side: Side, level: Level) -> float:
        """PomonaError: this guardrail was not calibrated."""
        try:
            return self.thresholds[side][level]
        except KeyError:
            raise PomonaError(
                f"guardrail: knows no threshold of the {side} for a share of {level}; give one in the policy"
            ) from None


class Prompts:
    """The prompts of texts for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, window: int) -> None:
        if not tokenizer.eos_token_ids:
            raise PomonaError("guardrail: the model's tokenizer has no end token; use another model")
        self._tokenizer, self._window = tokenizer, window
        self._end = tokenizer.eos_token_ids[0]
        self._user = tokenizer.encode("user:\n", add_special_tokens=True, parse_special=False)
        self._assistant = tokenizer.encode("assistant:\n", parse_special=False)

    def of_input(self, text: str) -> list[tuple[int, ...]]:
        """One for every window of the text; none for an empty one."""
        return [self.user(window) for window in self._windows(self.encode(text))]

    def of_output(self, request: str, answer: str, judged: int = 0) -> list[tuple[int, ...]]:
        """The same of an answer, each after the end of the request that it answers. judged: letters of it
        that need no window any more."""
        asked = self.encode(request)[-self._window :]
        known = len(self.encode(answer[:judged])) - 1 if judged else 0  # its last token may go on
        return [self.exchange(asked, window) for window in self._windows(self.encode(answer), known)]

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, parse_special=False)

    def user(self, ids: list[int]) -> tuple[int, ...]:
        return (*self._user, *ids, self._end)

    def exchange(self, asked: list[int], answer: list[int]) -> tuple[int, ...]:
        return (*self.user(asked), *self._assistant, *answer, self._end)

    def _windows(self, ids: list[int], known: int = 0) -> list[list[int]]:
        """Those that reach beyond `known` tokens. Neighbours share an eighth, so that no sentence is cut in
        both."""
        size = self._window
        step = size - size // 8
        count = max(math.ceil((len(ids) - size) / step), 0) + 1 if ids else 0
        starts = [number * step for number in range(count)]
        return [ids[start : start + size] for start in starts if start + size > known]


def verdict_probabilities(found: TokenLogprobs, tokens: dict[str, int]) -> dict[str, float]:
    """Verdict -> probability; they add up to 1. A verdict that is not among the likeliest tokens is
    given what the last of these has, which is the most that it can have."""
    told = dict(found.top)
    least = min(told.values())
    logs = [told.get(token, least) for token in tokens.values()]
    most = max(logs)
    weights = [math.exp(value - most) for value in logs]
    total = math.fsum(weights)
    return {name: weight / total for name, weight in zip(tokens, weights, strict=True)}


TOLD = MAX_TOP_LOGPROBS  # likeliest tokens that a verdict is read from
