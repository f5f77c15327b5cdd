"""Where the time of a decoded token goes: measured per module in the native engine.

    profile = measure_decoding(engine)
    profile.modules["model.layers.0.mlp.down_proj"]     # nanoseconds of one token

Every thread notes how long it works on its part of each product; the time of a module is the mean over the
threads, so that the modules add up. What is left of the token is attention, and the rest: norms, rounding of
activations, adapters, waiting at barriers, sampling and the call from Python.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pomona.errors import PomonaError
from pomona.runtime.engine import Engine, StepInput

MIN_TOKENS = 32  # medians of fewer say little
TOKENS, WARM_UP, PROMPT = 64, 8, 16
ATTENTION = "attention"  # the native profile's name for what belongs to no module


@dataclass(frozen=True)
class TokenProfile:
    """Medians over `tokens` decoded tokens of one sequence, in nanoseconds."""

    tokens: int
    threads: int
    isa: str
    token_ns: float  # from one token to the next
    fastest_ns: float
    attention_ns: float
    modules: dict[str, float]

    @property
    def modules_ns(self) -> float:
        return sum(self.modules.values())

    @property
    def disturbed(self) -> bool:
        """Whether half of the tokens took far longer than the fastest: other programs had the cores."""
        return self.token_ns > 1.5 * self.fastest_ns

    @property
    def remainder_ns(self) -> float:
        """What neither the modules nor attention account for."""
        return max(self.token_ns - self.attention_ns - self.modules_ns, 0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "threads": self.threads,
            "isa": self.isa,
            "token_ns": self.token_ns,
            "fastest_ns": self.fastest_ns,
            "disturbed": self.disturbed,
            "modules_ns": self.modules_ns,
            "attention_ns": self.attention_ns,
            "remainder_ns": self.remainder_ns,
        }


def measure_decoding(
    engine: Engine, *, tokens: int = TOKENS, progress: Callable[[str, int, int], None] | None = None
) -> TokenProfile:
    """Decodes `tokens` tokens after a prompt of 16 and gives the medians; other steps must not run meanwhile.

    PomonaError for fewer than 32 tokens, or more than the model's context has room for.
    """
    if tokens < MIN_TOKENS:
        raise PomonaError(f"{tokens} tokens; a median needs at least {MIN_TOKENS}")
    vocabulary = engine.config.vocab_size
    prompt = [(7 * i + 3) % vocabulary for i in range(PROMPT)]
    wall: list[float] = []
    parts: dict[str, list[float]] = {}
    engine.profile(True)
    try:
        with engine.new_sequence() as sequence:
            token = engine.step([StepInput(sequence, prompt)])[0]
            for done in range(WARM_UP + tokens):
                engine.take_profile()
                start = time.perf_counter_ns()
                token = engine.step([StepInput(sequence, [token])])[0]
                elapsed = time.perf_counter_ns() - start
                if done < WARM_UP:
                    continue
                wall.append(elapsed)
                for name, nanoseconds in engine.take_profile().items():
                    parts.setdefault(name, []).append(nanoseconds)
                if progress is not None:
                    progress("measure tokens", len(wall), tokens)
    finally:
        engine.profile(False)
    medians = {name: statistics.median(values) for name, values in parts.items()}
    attention = medians.pop(ATTENTION)
    token_ns, fastest_ns = statistics.median(wall), min(wall)
    return TokenProfile(tokens, engine.threads, engine.isa, token_ns, fastest_ns, attention, medians)
