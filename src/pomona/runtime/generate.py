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
from pomona.runtime.engine import Engine, Mask, Sequence, StepInput
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
        left = min(max_new_tokens, limit - len(prompt_ids))
        steps = _Steps(engine, sequence, sampling, stop_ids, guide, lookup or None)
        new = steps.begin(prompt_ids, left)  # what a guide forces needs no step of its own
        while left > 0:
            if not (steps.complete or len(new) == left):
                new = [*new, *steps.next(left - len(new))]
            left -= len(new)
            for index, token in enumerate(new):
                if token in stop_ids:
                    return
                try:
                    yield token
                except GeneratorExit:
                    # Accepted drafts that nobody has read: the sequence is left as it is without drafts.
                    if index < steps.accepted and not sequence.closed:
                        sequence.truncate(sequence.length - (steps.accepted - index))
                    raise
            if steps.complete:
                return
            new = []


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
        self._answer_start = 0
        self._tokens: Seq[int] = ()  # what the next step takes
        self._started = False
        self.accepted = 0  # drafts that the last step accepted

    @property
    def complete(self) -> bool:
        return self._guide is not None and self._guide.stopped

    def begin(self, prompt_ids: Seq[int], left: int) -> list[int]:
        """The tokens that the answer must begin with, at most `left`. They go through with the prompt."""
        forced = [] if self._guide is None or left <= 0 else self._guide.begin(left)
        self._tokens = [*prompt_ids, *forced] if forced else prompt_ids
        self._answer_start = self._sequence.length + len(prompt_ids)
        if forced and self._lookup is not None:
            self._lookup.extend(forced)
        return forced

    def next(self, left: int) -> list[int]:
        """The next tokens of the answer, at least one and at most `left`."""
        drafts: list[int] = []
        if self._lookup is not None and self._started:
            drafts = self._lookup.propose(left - 1, stop_ids=self._stop_ids)
        mask: Mask | None = None
        if self._guide is not None:
            if drafts:
                drafts, mask = self._guide.masks(drafts)
            if not drafts:
                mask = self._guide.mask()
        step = StepInput(self._sequence, self._tokens, self._sampling, mask, drafts, self._answer_start)
        started = time.perf_counter()
        new = self._engine.step_with_drafts([step])[0] if drafts else self._engine.step([step])
        if self._started and self._lookup is not None:
            rows = len(self._tokens) + len(drafts)
            self._engine.step_costs.observe(rows, time.perf_counter() - started)
        self._started = True
        self.accepted = len(new) - 1
        forced: list[int] = []
        if self._guide is not None and new[-1] not in self._stop_ids:
            for token in new[:-1]:
                self._guide.accept(token)
            new[-1], *forced = self._guide.advance(new[-1])
        if self._lookup is not None:
            self._lookup.extend(new, drafted=len(drafts))
            if forced:
                self._lookup.extend(forced)
        self._tokens = [new[-1], *forced]
        return [*new, *forced]
