"""What MDLOO and its relatives are asked for. No torch here: the command line reads this file.

The report says neither K nor beta, gamma, learning rate or inner steps (4.6); the values here are our own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pomona.posttraining.options import Count, Options, Positive

KlEstimator = Literal["exact", "sampled"]
Method = Literal["mdloo", "rloo", "rs"]
Weight = Annotated[float, Field(ge=0, lt=1e6)]


class MdlooOptions(Options):
    """method: mdloo; rloo, the same with one look at every response and no trust region; or rs, rejection
    sampling: the best response of every prompt is learnt by cross-entropy, with the same roll-outs.

    prompts, samples: of one iteration, and responses of each (K). beta: of the KL to the reference within
    the reward. gamma: of the KL to the iteration's start policy within the step. estimator: of that KL.
    max_ratio: what a response's probability ratio counts at most, for that of a long one can grow beyond all
    bounds in a few steps; None: the report's step as it is. inner_steps: optimizer steps on the responses of
    one iteration; mini_batches: into how many parts, of whole prompts, they go, one part to a step.
    informative: so many responses of a prompt are read and learnt, the best and the worst, and none where
    all are worth the same; None: all. warm_up: steps in which the rate rises, for AdamW's first ones are of
    full size whatever the gradient is worth. rank: of the adapter. temperature: of sampling, and of the
    policy that is trained. minutes: a time budget, looked at before an iteration. unfinished_reward: of a
    response that was cut off at max_new_tokens; None: what its text earns. empty_reward: of a response
    without text."""

    method: Method = "mdloo"
    iterations: Count = 20
    prompts: Annotated[int, Field(ge=1, le=65_536)] = 8
    samples: Annotated[int, Field(ge=2, le=1024)] = 8
    beta: Weight = 0.02
    gamma: Weight = 0.1
    estimator: KlEstimator = "exact"
    max_ratio: Annotated[float, Field(ge=1)] | None = 10.0
    inner_steps: Annotated[int, Field(ge=1, le=1000)] = 4
    mini_batches: Annotated[int, Field(ge=1, le=1024)] = 1
    informative: Annotated[int, Field(ge=2, le=1024)] | None = None
    lr: Positive = 5e-5
    warm_up: Annotated[int, Field(ge=0, le=1_000_000)] = 8
    clip: Positive = 1.0
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    max_new_tokens: Annotated[int, Field(ge=1, le=32_768)] = 128
    temperature: Annotated[float, Field(ge=0.05, le=10)] = 1.0
    unfinished_reward: float | None = None
    empty_reward: float = 0.0
    minutes: Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0

    @model_validator(mode="before")
    @classmethod
    def _rloo(cls, given: Any) -> Any:
        """Where nothing else is said, rloo has one step and no gamma."""
        if isinstance(given, dict) and given.get("method") == "rloo":
            return {"inner_steps": given.get("mini_batches", 1), "gamma": 0.0, **given}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> MdlooOptions:
        if self.mini_batches > self.prompts:
            raise ValueError(
                f"mini_batches {self.mini_batches}: there are only {self.prompts} prompts to share"
            )
        if self.method == "rloo" and (self.inner_steps != self.mini_batches or self.gamma != 0):
            raise ValueError(
                "method rloo looks once at every response: inner_steps = mini_batches and gamma = 0"
            )
        return self
