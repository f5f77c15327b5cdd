"""Perplexity of a text under a model: exp of the mean negative log-likelihood per scored token.

The tokens are cut into windows of `context` tokens that do not overlap, and every window is scored with an
empty past. Two protocols:

- "all": every token except the first of its window is scored, and a shorter window at the end counts too.
- "second-half": the protocol of llama.cpp's perplexity tool: full windows only, and in each of them only the
  tokens after position context/2, so that each scored token has at least half a window of past.

Sums are kept in float64: a float32 sum over a long text loses the third decimal of the perplexity.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from pomona.errors import PomonaError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Scored = Literal["all", "second-half"]
Progress = Callable[[str, int, int], None]


class _Config(Protocol):
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


class ScoringEngine(Protocol):
    """What perplexity needs of an engine (pomona.runtime.engine.Engine has it)."""

    @property
    def config(self) -> _Config: ...
    def score(self, token_ids: Sequence[int], /) -> NDArray[np.float32]:
        """[T] token ids -> [T-1] log p(token[i+1] | token[:i+1]), natural logarithm."""
        ...


@dataclass(frozen=True)
class PerplexityResult:
    """`nll` is the mean negative log-likelihood in nats per token; `tokens` counts the scored ones."""

    perplexity: float
    tokens: int
    seconds: float
    nll: float
    windows: int
    context: int
    scored: Scored

    @property
    def bits_per_token(self) -> float:
        return self.nll / math.log(2.0)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def perplexity(
    engine: ScoringEngine,
    token_ids: Sequence[int] | NDArray[np.integer],
    *,
    context: int = 1024,
    chunks: int | None = None,
    scored: Scored = "all",
    bos_token_id: int | None = None,
    progress: Progress | None = None,
) -> PerplexityResult:
    """Perplexity of `token_ids`, of which at most the first `chunks` windows are read.

    `bos_token_id` replaces the first token of every window, for models that expect it at position 0 (as in
    llama.cpp). Raises PomonaError if there is too little text, if `context` does not fit the model, or if the
    model answers with numbers that are not finite.
    """
    if scored not in get_args(Scored):
        raise PomonaError(f"scored: unknown protocol {scored!r}; choose one of {', '.join(get_args(Scored))}")
    limit = engine.config.max_position_embeddings
    if context > limit:
        raise PomonaError(
            f"context: {context} tokens are more than this model's {limit}; choose a smaller one"
        )
    smallest = 2 if scored == "all" else 4
    if context < smallest:
        raise PomonaError(f"context: {context} is too short to score anything; choose {smallest} or more")
    if chunks is not None and chunks < 1:
        raise PomonaError(f"chunks: {chunks} leaves no text to score; choose 1 or more")
    windows = _windows(token_ids, context, chunks, scored)
    _check_ids(windows, engine.config.vocab_size)

    # The token at position first + 1 is the first one that counts.
    first = 0 if scored == "all" else context // 2
    total, count = 0.0, 0
    started = time.perf_counter()
    for index, window in enumerate(windows):
        if progress is not None:
            progress("perplexity", index, len(windows))
        if bos_token_id is not None:
            window = [bos_token_id, *window[1:]]
        log_probabilities = engine.score(window)[first:]
        total -= float(log_probabilities.sum(dtype="float64"))
        count += len(log_probabilities)
        if not math.isfinite(total):
            raise PomonaError(
                f"perplexity: window {index + 1} of {len(windows)} got a probability that is not a number; "
                "the model's weights are damaged or its numbers overflow"
            )
    if progress is not None:
        progress("perplexity", len(windows), len(windows))
    nll = total / count
    return PerplexityResult(
        perplexity=math.exp(nll) if nll < 700 else math.inf,
        tokens=count,
        seconds=time.perf_counter() - started,
        nll=nll,
        windows=len(windows),
        context=context,
        scored=scored,
    )


def _windows(
    token_ids: Sequence[int] | NDArray[np.integer], context: int, chunks: int | None, scored: Scored
) -> list[list[int]]:
    count = len(token_ids)
    if count == 0:
        raise PomonaError("text: it holds no tokens; give a text with something in it")
    if scored == "second-half" and count < context:
        raise PomonaError(
            f"text: {count} tokens do not fill a window of {context}; give a longer text or a smaller context"
        )
    if count < 2:
        raise PomonaError("text: one token alone has nothing to predict; give a longer text")
    starts = range(0, count, context)
    windows = [[int(token) for token in token_ids[start : start + context]] for start in starts]
    # A last window that is not full is no window for llama.cpp; one single token can never be scored.
    if len(windows[-1]) < (context if scored == "second-half" else 2):
        windows.pop()
    return windows[:chunks]


def _check_ids(windows: list[list[int]], vocab_size: int) -> None:
    low, high = min(map(min, windows)), max(map(max, windows))
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise PomonaError(
            f"text: token {wrong} is outside the model's vocabulary of {vocab_size}; "
            "tokenise the text with the tokenizer of this model"
        )
