"""How the next token is chosen. First the logits are changed: repetition penalty, presence and frequency
penalties, bias. The filters after that are in the order of transformers: temperature, top-k, top-p, min-p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona import _native


@dataclass(frozen=True)
class Sampling:
    """Greedy by default. The random draw depends on `seed` and the token's position alone, so an answer can
    be repeated whatever else runs beside it."""

    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    # OpenAI's, taken from the logits of tokens that the answer has already: once, and for each time.
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, what is added to its logit

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_k", self.top_k, 0, 1 << 30),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, 0.01, 100.0),
            ("seed", self.seed, 0, (1 << 64) - 1),
            ("presence_penalty", self.presence_penalty, -100.0, 100.0),
            ("frequency_penalty", self.frequency_penalty, -100.0, 100.0),
            *(("logit_bias", bias, -1000.0, 1000.0) for _, bias in self.logit_bias),
        ):
            kinds = (int,) if isinstance(high, int) else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
                raise PomonaError(f"{name} = {str(value)[:40]}: must lie in {low} .. {high}")

    def native(self, answer_start: int = 0) -> _native.Sampling:
        """answer_start: how many tokens of the sequence are the prompt's."""
        from pomona import _native

        return _native.Sampling(
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.repetition_penalty,
            self.seed,
            self.presence_penalty,
            self.frequency_penalty,
            answer_start,
            self.logit_bias,
        )
