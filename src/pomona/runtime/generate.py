"""One sequence, token by token: the synchronous path for a single user.

for token in generate(engine, prompt_ids, sampling=Sampling(), max_new_tokens=64, stop_ids={2}):
    ...
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from pomona.errors import PomonaError
from pomona.runtime.engine import Engine, Sequence, StepInput
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
) -> Iterator[int]:
    """Yields new tokens until one of `stop_ids` (not yielded), `max_new_tokens`, or the end of the context.

    sequence: where the tokens go (it says which adapter runs), left open at the end; by default one of its
    own, which is closed. guide: only tokens that it allows are chosen, and its end is the answer's end.
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
        tokens = prompt_ids
        for _ in range(min(max_new_tokens, limit - len(prompt_ids))):
            mask = None if guide is None else guide.mask()
            token = engine.step([StepInput(sequence, tokens, sampling, mask)])[0]
            if token in stop_ids:
                return
            yield token
            if guide is not None:
                guide.accept(token)
                if guide.stopped:
                    return
            tokens = [token]
