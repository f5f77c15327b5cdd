"""Where the time of a decoded token goes: measured per module in the native engine.

    profile = measure_decoding(engine)
    profile.modules["model.layers.0.mlp.down_proj"]     # nanoseconds of one token

Every thread notes how long it works on its part of each product; the time of a module is the mean over the
threads, so that the modules add up. What is left of the token is attention, and the rest: norms, rounding of
activations, adapters, waiting at barriers, sampling and the call from Python.

Where other programs use the cores, a token now and then takes many times its own time. Then more tokens are
decoded and the fastest of them stand for the model, whole ones, so that the parts still add up.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pomona.errors import PomonaError
from pomona.runtime.engine import Engine, StepInput

MIN_TOKENS = 32  # medians of fewer say little
TOKENS, WARM_UP, PROMPT = 64, 8, 16
SECONDS = 1.0  # at the least, so that a program that disturbs all tokens of a moment is noticed
PATIENCE = 20.0  # seconds of more tokens on a busy machine
CALM = 1.1  # median / fastest of tokens that nothing disturbed
ATTENTION = "attention"  # the native profile's name for what belongs to no module


@dataclass(frozen=True)
class TokenProfile:
    """Medians over `tokens` tokens in nanoseconds: all decoded ones, or on a busy machine the fastest."""

    tokens: int
    decoded: int
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
        """Whether half of the tokens still took far longer than the fastest: other programs had the cores."""
        return self.token_ns > 1.5 * self.fastest_ns

    @property
    def remainder_ns(self) -> float:
        """What neither the modules nor attention account for."""
        return max(self.token_ns - self.attention_ns - self.modules_ns, 0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "decoded": self.decoded,
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
    engine: Engine,
    *,
    tokens: int = TOKENS,
    patience: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> TokenProfile:
    """Decodes `tokens` tokens after a prompt of 16 and gives the medians; other steps must not run meanwhile.

    The same places are decoded again until a second has passed, and, where other programs disturbed the
    tokens, until 32 of them were not, or for `patience` seconds (None: PATIENCE); then the medians are those
    of the 32 fastest. PomonaError for fewer than 32 tokens, or more than the context has room for.
    """
    if tokens < MIN_TOKENS:
        raise PomonaError(f"{tokens} tokens; a median needs at least {MIN_TOKENS}")
    vocabulary = engine.config.vocab_size
    prompt = [(7 * i + 3) % vocabulary for i in range(PROMPT)]
    found: list[_Token] = []
    busy = False
    engine.profile(True)
    try:
        with engine.new_sequence() as sequence:
            token = engine.step([StepInput(sequence, prompt)])[0]
            for _ in range(WARM_UP):
                token = engine.step([StepInput(sequence, [token])])[0]
            begin, started = sequence.length, time.monotonic()
            patience = PATIENCE if patience is None else patience
            while True:
                label = "measure again, the machine is busy" if busy else "measure tokens"
                for done in range(tokens):
                    engine.take_profile()
                    start = time.perf_counter_ns()
                    token = engine.step([StepInput(sequence, [token])])[0]
                    found.append(_Token(time.perf_counter_ns() - start, engine.take_profile()))
                    if progress is not None:
                        progress(label, done + 1, tokens)
                    if len(found) > tokens and time.monotonic() - started > max(patience, SECONDS):
                        break
                found.sort(key=lambda timed: timed.wall)
                busy, elapsed = not _calm(found), time.monotonic() - started
                if elapsed >= min(SECONDS, patience) and (
                    not busy or _calm(found[:MIN_TOKENS]) or elapsed > patience
                ):
                    break
                sequence.truncate(begin)
    finally:
        engine.profile(False)
    kept = found[:MIN_TOKENS] if busy else found
    modules = {name: statistics.median(timed.parts[name] for timed in kept) for name in kept[0].parts}
    return TokenProfile(
        tokens=len(kept),
        decoded=len(found),
        threads=engine.threads,
        isa=engine.isa,
        token_ns=statistics.median(timed.wall for timed in kept),
        fastest_ns=found[0].wall,
        attention_ns=modules.pop(ATTENTION),
        modules=modules,
    )


@dataclass(frozen=True)
class _Token:
    wall: int  # nanoseconds
    parts: dict[str, float]


def _calm(timed: Sequence[_Token]) -> bool:
    """Whether most of the tokens, which are sorted by time, took about as long as the fastest."""
    return statistics.median(token.wall for token in timed) <= CALM * timed[0].wall
