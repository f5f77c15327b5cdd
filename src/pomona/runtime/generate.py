"""One sequence, token by token: the synchronous path for a single user.

for token in generate(engine, prompt_ids, sampling=Sampling(), max_new_tokens=64, stop_ids={2}):
    ...
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from pomona.errors import PomonaError
from pomona.runtime.engine import Engine, Sequence, StepInput
from pomona.runtime.lookup import Lookup
from pomona.runtime.sampling import Sampling

if TYPE_CHECKING:
    from pomona.runtime.guided import GuidedTokens


def generate(
    engine: Engine,
    prompt_ids: Seq[int],
    *,
    sampling: Sampling,
    max_new_tokens: int,
    stop_ids: Collection[int],
    sequence: Sequence | None = None,
    guide: GuidedTokens | None = None,
    lookup: Lookup | bool = True,
) -> Iterator[int]:
    """Yields new tokens until one of `stop_ids` (not yielded), `max_new_tokens`, or the end of the context.

    sequence: where the tokens go (it says which adapter runs), left open at the end; by default one of its
    own, which is closed. guide: only tokens that it allows are chosen, and its end is the answer's end.
    lookup: whether guesses from the prompt and the answer may shorten the time (lookup.py; the tokens are the
    same); a Lookup of this prompt tells afterwards what became of them.
    Raises PomonaError when the prompt is empty or longer than the model's context.
    """
    if not prompt_ids:
        raise PomonaError("the prompt has no tokens; give a text")
    limit = min(engine.config.max_position_embeddings, engine.native.kv_tokens)
    if len(prompt_ids) >= limit:
        raise PomonaError(
            f"the prompt has {len(prompt_ids):,} tokens, the context holds {limit:,}; shorten it"
        )
    with contextlib.ExitStack() as stack:
        if sequence is None:
            sequence = stack.enter_context(engine.new_sequence())
        if lookup is True:
            lookup = Lookup(prompt_ids, engine.step_costs)
        steps = _Steps(engine, sequence, sampling, stop_ids, guide, lookup or None)
        left = min(max_new_tokens, limit - len(prompt_ids))
        new: list[int] = []
        while left > 0:
            new = steps.next(new[-1], left) if new else steps.first(prompt_ids)
            left -= len(new)
            for index, token in enumerate(new):
                if token in stop_ids:
                    return
                try:
                    yield token
                except GeneratorExit:
                    # Accepted drafts that nobody has read: the sequence is left as it is without drafts.
                    if index + 1 < len(new) and not sequence.closed:
                        sequence.truncate(sequence.length - (len(new) - 1 - index))
                    raise
                if guide is not None:
                    guide.accept(token)
                    if guide.stopped:
                        return


class _Steps:
    """The steps of one answer, with drafts where they pay."""

    def __init__(
        self,
        engine: Engine,
        sequence: Sequence,
        sampling: Sampling,
        stop_ids: Collection[int],
        guide: GuidedTokens | None,
        lookup: Lookup | None,
    ) -> None:
        self._engine = engine
        self._sequence = sequence
        self._sampling = sampling
        self._stop_ids = stop_ids
        self._guide = guide
        self._lookup = lookup

    def first(self, prompt_ids: Seq[int]) -> list[int]:
        """The token after the prompt."""
        mask = None if self._guide is None else self._guide.mask()
        new = self._engine.step([StepInput(self._sequence, prompt_ids, self._sampling, mask)])
        if self._lookup is not None:
            self._lookup.extend(new)
        return new

    def next(self, token: int, left: int) -> list[int]:
        """The tokens after `token`, at least one and at most `left`."""
        if self._lookup is None:
            return self._plain(token)
        started = time.perf_counter()
        drafts = self._lookup.propose(left - 1, stop_ids=self._stop_ids)
        if drafts:
            mask = None
            if self._guide is not None:
                drafts, mask = self._guide.masks(drafts)
            step = StepInput(self._sequence, [token], self._sampling, mask, drafts)
            new = self._engine.step_with_drafts([step])[0]
        else:
            new = self._plain(token)
        self._engine.step_costs.observe(1 + len(drafts), time.perf_counter() - started)
        self._lookup.extend(new, drafted=len(drafts))
        return new

    def _plain(self, token: int) -> list[int]:
        mask = None if self._guide is None else self._guide.mask()
        return self._engine.step([StepInput(self._sequence, [token], self._sampling, mask)])
