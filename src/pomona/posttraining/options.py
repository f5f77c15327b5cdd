"""What MDLOO and its relatives are asked for. No torch here: the command line reads this file.

The report says neither K nor beta, gamma, learning rate or inner steps (4.6); the values here are our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pomona.errors import PomonaError

KlEstimator = Literal["exact", "sampled"]
Method = Literal["mdloo", "rloo", "rs"]


@dataclass(frozen=True)
class MdlooOptions:
    """method: mdloo; rloo, the same with one inner step and no trust region; or rs, rejection sampling: the
    best response of every prompt is learnt by cross-entropy, with the same roll-outs.

    prompts, samples: of one iteration, and responses of each (K). beta: of the KL to the reference within the
    reward. gamma: of the KL to the iteration's start policy within the step. estimator: of that KL. inner_steps:
    optimizer steps on the responses of one iteration; mini_batches: into how many parts, of whole prompts, they
    go, one part to a step. temperature: of sampling, and of the policy that is trained. minutes: a time
    budget, looked at before an iteration. unfinished_reward: of a response that was cut off at
    max_new_tokens; None: what its text earns. empty_reward: of a response without text."""

    method: Method = "mdloo"
    iterations: int = 20
    prompts: int = 8
    samples: int = 8
    beta: float = 0.02
    gamma: float = 0.1
    estimator: KlEstimator = "exact"
    inner_steps: int = 4
    mini_batches: int = 1
    lr: float = 1e-4
    clip: float = 1.0
    rank: int = 16
    max_new_tokens: int = 128
    temperature: float = 1.0
    unfinished_reward: float | None = None
    empty_reward: float = 0.0
    minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("method", get_args(Method)), ("estimator", get_args(KlEstimator))):
            if getattr(self, name) not in choices:
                raise PomonaError(f"{name} = {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        for name, low, high in (
            ("iterations", 1, 1_000_000),
            ("prompts", 1, 65_536),
            ("samples", 2, 1024),
            ("inner_steps", 1, 1000),
            ("mini_batches", 1, 1024),
            ("rank", 1, 1024),
            ("max_new_tokens", 1, 32_768),
            ("seed", 0, (1 << 31) - 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise PomonaError(f"{name} = {value!r}: must be a whole number in {low} .. {high}")
        for name, low_, high_ in (
            ("beta", 0.0, 100.0),
            ("gamma", 0.0, 1e6),
            ("lr", 1e-12, 10.0),
            ("clip", 1e-9, 1e9),
            ("temperature", 0.05, 10.0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low_ <= value <= high_:
                raise PomonaError(f"{name} = {value!r}: must be a number in {low_:g} .. {high_:g}")
        if self.minutes is not None and not 0 < self.minutes < 1e6:
            raise PomonaError(f"minutes = {self.minutes}: must be a positive number")
        if self.mini_batches > self.prompts:
            raise PomonaError(
                f"mini_batches = {self.mini_batches}: there are {self.prompts} prompts to share; choose less"
            )
        if self.method == "rloo" and (self.inner_steps != self.mini_batches or self.gamma != 0):
            raise PomonaError("method = 'rloo': has one look at every response and gamma = 0; set them so")
