"""A model that answers: engine, tokenizer and chat template together.

model = Model.load("smollm2-135m-4bit")
for piece in model.stream([{"role": "user", "content": "Name three apples."}]):
    print(piece, end="")
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pomona.errors import PomonaError
from pomona.models.store import resolve
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import Engine
from pomona.runtime.generate import generate
from pomona.runtime.sampling import Sampling

if TYPE_CHECKING:
    from pomona.runtime.guided import Guide, GuidedTokens, Guides


@dataclass(frozen=True)
class Timing:
    """What an answer took. Prefill ends with the first token; decoding is everything after it."""

    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    first_token_seconds: float  # from the call to the first piece, rendering and tokenising included
    reused_tokens: int = 0  # of the prompt, found in the prefix cache

    @property
    def prefill_tps(self) -> float:
        computed = self.prompt_tokens - self.reused_tokens
        return computed / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_tps(self) -> float:
        return (
            (self.new_tokens - 1) / self.decode_seconds
            if self.decode_seconds > 0 and self.new_tokens > 1
            else 0.0
        )


class Model:
    """`last_timing` tells the speed of the last answer that was read to its end (or stopped)."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.last_timing: Timing | None = None

    @cached_property
    def guides(self) -> Guides:
        """The compiler of guides, made when the first guided answer asks for it."""
        from pomona.runtime.guided import Guides

        spare = self.engine.threads < len(os.sched_getaffinity(0))
        return Guides(self.tokenizer, self.engine.config.vocab_size, overlap=spare)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        threads: int | None = None,
        isa: str = "auto",
        kv_tokens: int | None = None,
        prefix_cache: bool = True,
    ) -> Model:
        """`name`: a model in the cache or a directory. Other arguments as Engine.load's."""
        directory = resolve(name)
        engine = Engine.load(
            directory, threads=threads, isa=isa, kv_tokens=kv_tokens, prefix_cache=prefix_cache
        )
        return cls(engine, Tokenizer.from_directory(directory))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn."""
        template = self.tokenizer.chat_template
        if template is None:
            raise PomonaError(
                f"{self.engine.directory}: the model has no chat template; use raw text (`pomona run --raw`)"
            )
        return self.tokenizer.encode(template.render(list(messages), add_generation_prompt=True))

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 512,
        guide: Guide | None = None,
    ) -> Iterator[str]:
        """Pieces of the answer to a conversation of {"role", "content"} messages, as they come."""
        started = time.perf_counter()
        guided = None if guide is None else self.guides.start(guide)
        return self._stream(self.render(messages), sampling or Sampling(), max_new_tokens, started, guided)

    def complete(
        self, text: str, *, sampling: Sampling | None = None, max_new_tokens: int = 512
    ) -> Iterator[str]:
        """Pieces of the continuation of a raw text, without any template."""
        started = time.perf_counter()
        ids = self.tokenizer.encode(text, add_special_tokens=True, parse_special=False)
        return self._stream(ids, sampling or Sampling(), max_new_tokens, started, None)

    def respond(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        sampling: Sampling | None = None,
        max_new_tokens: int = 512,
        guide: Guide | None = None,
    ) -> str:
        """The whole answer at once."""
        pieces = self.stream(messages, sampling=sampling, max_new_tokens=max_new_tokens, guide=guide)
        return "".join(pieces)

    def _stream(
        self,
        ids: list[int],
        sampling: Sampling,
        max_new_tokens: int,
        started: float,
        guide: GuidedTokens | None,
    ) -> Iterator[str]:
        self.last_timing = None
        decoder = self.tokenizer.stream()
        prefill_started = time.perf_counter()
        first = last = 0.0
        count = 0
        with self.engine.new_sequence() as sequence:
            try:
                for token in generate(
                    self.engine,
                    ids,
                    sampling=sampling,
                    max_new_tokens=max_new_tokens,
                    stop_ids=self.tokenizer.eos_token_ids,
                    sequence=sequence,
                    guide=guide,
                ):
                    last = time.perf_counter()
                    first = first or last
                    count += 1
                    if piece := decoder.push(token):
                        yield piece
                if piece := decoder.flush():
                    yield piece
            finally:
                first = first or time.perf_counter()
                last = last or first
                self.last_timing = Timing(
                    len(ids),
                    count,
                    first - prefill_started,
                    last - first,
                    first - started,
                    sequence.reused_tokens,
                )
