"""From rows to token ids: the chat template, which tokens are learnt, what is held out, what is read at once.

Only the assistant's answers are learnt, each with the token that ends its turn. A row is encoded in the
pieces in which the runtime meets it (the prompt up to the opened answer, then the answer), so that training
and use see the same tokens; a control token that somebody spelled out in a message stays plain text in both.

Rows of one step are put one after the other into passes of a bounded number of tokens. Nothing is padded and
nothing is cut: attention stays within a row (training/network.py of compression), so a row has the same
gradient in whatever company it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pomona.adapters.data import Message, Problem, Row
from pomona.errors import PomonaError
from pomona.models.chat_template import ChatTemplate
from pomona.models.fence import Fence
from pomona.models.model_directory import Progress
from pomona.models.tokenizer import Tokenizer

MAX_HELD_OUT = 400  # rows; more make an evaluation slow and hardly more exact


@dataclass(frozen=True)
class Example:
    """One row as tokens. ids: int32, up to the last one that is learnt; learnt: whether the token at a place
    is predicted from those before it. The network reads all but the last."""

    line: int
    key: bytes
    ids: NDArray[np.int32]
    learnt: NDArray[np.bool_]

    @property
    def tokens(self) -> int:
        """That the network reads."""
        return len(self.ids) - 1

    @property
    def answers(self) -> int:
        """Tokens that are learnt."""
        return int(self.learnt.sum())


@dataclass(frozen=True)
class Encoded:
    """examples: of the rows that fit. endless: rows whose template ends no answer with an end token, so that
    where to stop is not learnt."""

    examples: list[Example]
    problems: list[Problem]
    endless: int


def encode_rows(
    rows: Sequence[Row], tokenizer: Tokenizer, window: int, *, progress: Progress | None = None
) -> Encoded:
    """Rows that are longer than `window` tokens, or that the template refuses, become problems: no answer is
    ever cut. PomonaError: the model has no chat template."""
    if tokenizer.chat_template is None:
        raise PomonaError(
            "the model has no chat template; adapt a chat model (its name often ends in Instruct)"
        )
    examples: list[Example] = []
    problems: list[Problem] = []
    endless = 0
    for number, row in enumerate(rows):
        if progress is not None and number % 64 == 0:
            progress("encode rows", number, len(rows))
        try:
            example, ended = encode_row(row, tokenizer)
        except PomonaError as error:
            problems.append(Problem("template", row.line, str(error)))
            continue
        if len(example.ids) > window:
            what = f"{len(example.ids):,} tokens, the window has {window:,}"
            problems.append(Problem("too long", row.line, what))
            continue
        endless += not ended
        examples.append(example)
    return Encoded(examples, problems, endless)


def encode_row(row: Row, tokenizer: Tokenizer) -> tuple[Example, bool]:
    """The example, and whether its answers end with an end token. PomonaError: the template refuses the row,
    or shows an answer in another way when more follows."""
    template = tokenizer.chat_template
    assert template is not None
    fence = Fence(tokenizer)
    messages: list[Message] = fence.guarded(list(row.messages))
    whole = template.render(messages, add_generation_prompt=False)
    ids: list[int] = []
    learnt: list[bool] = []
    at = 0
    ended = True
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start, end = place_of_answer(template, messages, number, whole)
        if start < at:
            raise PomonaError(f"message {number + 1}: the chat template shows it within an earlier one")
        found = end_of_turn(tokenizer, whole[start:end])
        ended &= found is not None
        end = end if found is None else start + found
        for text, counts in ((whole[at:start], False), (whole[start:end], True)):
            piece = fence.encode(text) if text else []
            ids += piece
            learnt += [counts] * len(piece)
        at = end
    if not any(learnt[1:]):
        raise PomonaError("the chat template shows no answer behind a prompt")
    learnt[0] = False  # nothing stands before it
    return Example(row.line, row.key, np.array(ids, np.int32), np.array(learnt, np.bool_)), ended


def place_of_answer(
    template: ChatTemplate, messages: Sequence[Message], number: int, whole: str
) -> tuple[int, int]:
    """Where in `whole` the answer of message `number` begins and ends, what ends its turn included."""
    opened = template.render(messages[:number], add_generation_prompt=True)
    closed = template.render(messages[: number + 1], add_generation_prompt=False)
    if not whole.startswith(closed) or not closed.startswith(opened):
        raise PomonaError(
            f"message {number + 1}: the chat template shows the answer in another way than it opens it; "
            "give rows of one answer each"
        )
    return len(opened), len(closed)


def end_of_turn(tokenizer: Tokenizer, text: str) -> int | None:
    """Behind the last end token in an answer's text; what the template writes after it is never generated."""
    ends = [tokenizer.id_to_token(index) for index in tokenizer.eos_token_ids]
    places = [text.rfind(end) + len(end) for end in ends if end is not None and end in text]
    return max(places, default=None)


# --- what is held out


@dataclass(frozen=True)
class Split:
    train: list[Example]
    held_out: list[Example]


def split(examples: Sequence[Example], share: float, *, seed: int) -> Split:
    """Holds out `share` of the rows, one at the least and MAX_HELD_OUT at the most. Equal rows go together.
    Who is held out depends on the rows' texts and the seed, not on their places in the file.

    PomonaError: fewer than two different rows."""
    if not 0 < share <= 0.5:
        raise PomonaError(f"--validation {share}: must lie above 0 and not above 0.5")
    groups: dict[bytes, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.key, []).append(example)
    if len(groups) < 2:
        raise PomonaError(
            f"{len(groups)} different rows can be used; two are needed, one to learn and one to judge by"
        )
    order = sorted(groups, key=lambda key: hashlib.sha256(seed.to_bytes(8, "big") + key).digest())
    wanted = min(max(round(share * len(examples)), 1), MAX_HELD_OUT)
    chosen: set[bytes] = set()
    count = 0
    for key in order[:-1]:  # one group must be left to learn
        if count >= wanted:
            break
        if chosen and count + len(groups[key]) > 2 * wanted:  # a row that stands there a hundred times
            continue
        chosen.add(key)
        count += len(groups[key])
    return Split(
        [example for example in examples if example.key not in chosen],
        [example for example in examples if example.key in chosen],
    )


# --- what is read together


def passes(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Numbers of rows, grouped so that none but a single long row has more than `limit` tokens: first fit,
    longest first. The same lengths give the same groups."""
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    groups: list[list[int]] = []
    room: list[int] = []
    for number in order:
        place = next((i for i, free in enumerate(room) if free >= lengths[number]), None)
        if place is None:
            groups.append([number])
            room.append(limit - lengths[number])
        else:
            groups[place].append(number)
            room[place] -= lengths[number]
    return groups
