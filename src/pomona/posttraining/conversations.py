"""Conversations as tokens: what comes before the last answer, and that answer with its end token.

Both are encoded in the pieces in which the runtime meets them, so that a reward model, a preference loss and
the runtime see the same tokens; a control token that somebody spelled out stays plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pomona.adapters.data import Message
from pomona.adapters.packing import end_of_turn, place_of_answer
from pomona.errors import PomonaError
from pomona.models.fence import Fence
from pomona.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation that ends with an answer. An empty answer has its end token alone."""

    prompt: list[int]
    answer: list[int]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.answer

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def encode(messages: Sequence[Message], tokenizer: Tokenizer) -> Encoded:
    """The conversation up to the end of its last message, which is the assistant's.

    PomonaError: no chat template, another last message, a conversation that the template refuses.
    """
    template = tokenizer.chat_template
    if template is None:
        raise PomonaError(
            "the model has no chat template; use a chat model (its name often ends in Instruct)"
        )
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise PomonaError("the conversation does not end with the assistant's answer to something")
    fence = Fence(tokenizer)
    guarded: list[Message] = fence.guarded(list(messages))
    whole = template.render(guarded, add_generation_prompt=False)
    start, end = place_of_answer(template, guarded, len(guarded) - 1, whole)
    answer = whole[start:end]
    found = end_of_turn(tokenizer, answer)
    return Encoded(fence.encode(whole[:start]), fence.encode(answer if found is None else answer[:found]))


def padding_token(tokenizer: Tokenizer) -> int:
    """A control token that ends no turn, to fill up rows with.

    Classifiers of transformers find a row's last token as the last one that is not the padding token; where
    that is the end token, as chat models often have it, they read the state before the end. PomonaError: the
    tokenizer has no such token.
    """
    added = tokenizer.backend.get_added_tokens_decoder()
    ids = sorted(index for index, token in added.items() if token.special)
    for index in ids:
        if index not in tokenizer.eos_token_ids:
            return index
    raise PomonaError("the tokenizer has no control token beside those that end a turn; add a padding token")
