"""One answer of a local model on the synchronous path: its text in pieces, how it ended, what it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pomona.runtime.generate import generate
from pomona.runtime.reply import FinishReason, Usage
from pomona.runtime.sampling import Sampling

if TYPE_CHECKING:
    from pomona.models.tokenizer import Tokenizer
    from pomona.runtime.adapters import LoadedAdapter
    from pomona.runtime.engine import Engine
    from pomona.runtime.guided import GuidedTokens


class Answer:
    """Iterate once. `usage` and `finish_reason` are there when the iteration has ended, early or not."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        ids: list[int],
        *,
        sampling: Sampling,
        max_new_tokens: int,
        started: float,
        adapter: LoadedAdapter | None = None,
        guide: GuidedTokens | None = None,
        hide_special: bool = True,
    ) -> None:
        """started: perf_counter() at the user's call. hide_special: leave control tokens out of the text."""
        self.usage: Usage | None = None
        self.finish_reason: FinishReason = "stop"
        self._engine, self._tokenizer, self._ids = engine, tokenizer, ids
        self._sampling, self._max_new_tokens, self._started = sampling, max_new_tokens, started
        self._adapter, self._guide, self._hide_special = adapter, guide, hide_special

    def __iter__(self) -> Iterator[str]:
        decoder = self._tokenizer.stream(skip_special_tokens=self._hide_special)
        prefill_started = time.perf_counter()
        first = last = 0.0
        count = 0
        with self._engine.new_sequence(self._adapter) as sequence:
            try:
                for token in generate(
                    self._engine,
                    self._ids,
                    sampling=self._sampling,
                    max_new_tokens=self._max_new_tokens,
                    stop_ids=self._tokenizer.eos_token_ids,
                    sequence=sequence,
                    guide=self._guide,
                ):
                    last = time.perf_counter()
                    first = first or last
                    count += 1
                    if piece := decoder.push(token):
                        yield piece
                if piece := decoder.flush():
                    yield piece
            finally:
                now = time.perf_counter()
                first = first or now
                last = last or first
                guide = self._guide
                cut_off = count >= self._room() and not (guide is not None and guide.stopped)
                if cut_off or (guide is not None and guide.cut):
                    self.finish_reason = "length"
                self.usage = Usage(
                    len(self._ids),
                    count,
                    first - prefill_started,
                    last - first,
                    first - self._started,
                    sequence.reused_tokens,
                    now - self._started,
                )

    def _room(self) -> int:
        """How many tokens there can be before the answer is cut off."""
        return min(self._max_new_tokens, context_limit(self._engine) - len(self._ids))


def context_limit(engine: Engine) -> int:
    """Tokens that one sequence can have, prompt and answer together."""
    return min(engine.config.max_position_embeddings, engine.native.kv_tokens)
