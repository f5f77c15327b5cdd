"""The policy: an adapter on the frozen base, on pomona's own training network (compression/training).

    scores = policy.score(rows)                         # log pi(y | x), and what the exact KL needs
    policy.gradient(rows, scores, coefficients, ...)    # adds the gradient of the loss to the parameters'

Only the projections are adapted and the head is frozen, so the policy at the start of an iteration is kept as
the last hidden states of the responses: its logits over the full vocabulary come back by one product.
Responses to one prompt that follow each other share it: it is read once, and they continue it.

Shape letters: T tokens of a pass, C of them response tokens, D hidden, V vocabulary, N responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pomona.adapters.options import PASS_TOKENS
from pomona.adapters.packing import Example, passes
from pomona.compression.training.network import Network
from pomona.compression.training.parameters import new_adapters
from pomona.posttraining.training.mdloo_loss import (
    Responses,
    entropies,
    log_probs,
    logits_gradient,
)
from pomona.runtime.adapter_writer import Pair

# log pi(y | x) of the responses of a pass, their numbers among the rows -> c_i
Coefficients = Callable[[Tensor, list[int]], Tensor]


@dataclass(frozen=True)
class Score:
    """Of one response. states [C, D], bfloat16: with what the head makes its tokens' logits."""

    log_p: float
    tokens: int
    entropy: float = 0.0  # summed over its tokens
    states: Tensor | None = None


def response_row(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Example:
    """A response as a row of the training network: its tokens are learnt, those of the prompt are not."""
    ids = np.array([*prompt_ids, *response_ids], np.int32)
    learnt = np.zeros(len(ids), np.bool_)
    learnt[len(prompt_ids) :] = True
    return Example(0, b"", ids, learnt)


@dataclass(frozen=True)
class SharedBatch:
    """Prompts, each before all of its responses. places [C]: whose state foretells a token of a response,
    which for the first is the prompt's last; wanted [C]: that token."""

    ids: Tensor  # [1, T]
    lengths: tuple[int, ...]
    after: tuple[int, ...]
    places: Tensor
    wanted: Tensor

    @classmethod
    def of(cls, families: Sequence[Sequence[Example]]) -> SharedBatch:
        """families: responses to one prompt each."""
        ids: list[NDArray[np.int32]] = []
        after: list[int] = []
        places: list[NDArray[np.int64]] = []
        wanted: list[NDArray[np.int32]] = []
        at = 0
        for family in families:
            prompt = prompt_of(family[0])
            number = len(ids)
            ids.append(prompt)
            after.append(-1)
            at += len(prompt)
            last = at - 1
            for row in family:
                response = row.ids[len(prompt) :]
                places.append(np.array([last, *range(at, at + len(response) - 1)]))
                wanted.append(response)
                if len(response) > 1:  # nothing is read of a single token
                    ids.append(response[:-1])
                    after.append(number)
                    at += len(response) - 1
        return cls(
            torch.from_numpy(np.concatenate(ids).astype(np.int64))[None],
            tuple(len(part) for part in ids),
            tuple(after),
            torch.from_numpy(np.concatenate(places)),
            torch.from_numpy(np.concatenate(wanted).astype(np.int64)),
        )


def prompt_of(row: Example) -> NDArray[np.int32]:
    """What stands before the response."""
    return row.ids[: int(np.argmax(row.learnt))]


def families_of(rows: Sequence[Example], limit: int) -> tuple[list[list[int]], list[int]]:
    """Numbers of neighbours with one prompt, and how many tokens are read of them: at most `limit`, unless a
    single row has more."""
    families: list[list[int]] = []
    costs: list[int] = []
    previous = b""
    for number, row in enumerate(rows):
        prompt = prompt_of(row)
        more = len(row.ids) - len(prompt) - 1
        if families and prompt.tobytes() == previous and costs[-1] + more <= limit:
            families[-1].append(number)
            costs[-1] += more
        else:
            families.append([number])
            costs.append(len(prompt) + more)
        previous = prompt.tobytes()
    return families, costs


class Policy:
    """start: A and B of every projection; without it the policy begins as the base. The reference is what the
    policy is at first."""

    def __init__(
        self,
        network: Network,
        *,
        rank: int,
        scale: float,
        seed: int = 0,
        start: Mapping[str, Pair] | None = None,
        temperature: float = 1.0,
        pass_tokens: int = PASS_TOKENS,
    ) -> None:
        self.network, self.scale = network, scale
        self.temperature, self.pass_tokens = temperature, pass_tokens
        self.flat, adapters = new_adapters(network, rank=rank, scale=scale, seed=seed)
        for name, (a_RK, b_NR) in (start or {}).items():
            self.flat.value(f"{name}.a").copy_(torch.from_numpy(a_RK))
            self.flat.value(f"{name}.b").copy_(torch.from_numpy(b_NR))
        for group in network.projections():
            group.adapt(adapters)
        self.reference = self.flat.values.clone()

    def pairs(self) -> dict[str, Pair]:
        value = self.flat.value
        return {
            name: (value(f"{name}.a").numpy(), value(f"{name}.b").numpy())
            for name in self.network.config.linear_shapes()
        }

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within the block the policy is its reference."""
        present = self.flat.values.clone()
        self._become(self.reference)
        try:
            yield
        finally:
            self._become(present)

    def _become(self, values: Tensor) -> None:
        if not torch.equal(self.flat.values, values):
            self.flat.values.copy_(values)
            self.network.refresh()

    def score(self, rows: Sequence[Example], *, entropy: bool = False, keep: bool = False) -> list[Score]:
        """log pi(y | x) of every row, in nats. keep: with the states that the exact KL needs."""
        found: dict[int, Score] = {}
        for numbers, batch, responses in self._batches(rows):
            states_TD, _ = self.network.forward(batch.ids, lengths=batch.lengths, after=batch.after)
            states_CD = states_TD[batch.places]
            logits_CV = self._logits(states_CD)
            log_p, log_z = log_probs(logits_CV, responses, self.temperature)
            sums, spread = responses.sums(log_p).tolist(), [0.0] * responses.count
            if entropy:
                spread = responses.sums(entropies(logits_CV, log_z, self.temperature)).tolist()
            ends = np.cumsum([rows[number].answers for number in numbers])
            for place, number in enumerate(numbers):
                count = rows[number].answers
                part = states_CD[int(ends[place]) - count : int(ends[place])]
                found[number] = Score(sums[place], count, spread[place], part.clone() if keep else None)
        return [found[number] for number in range(len(rows))]

    def gradient(
        self,
        rows: Sequence[Example],
        coefficients: Coefficients,
        *,
        kl_weight: float = 0.0,
        old: Sequence[Score] | None = None,
    ) -> float:
        """Adds the gradient of  sum_i c_i log pi(y_i | x) + kl_weight sum_t KL_t;  gives the sum of KL_t.

        old: scores of the rows under the iteration's start policy, with states, for the exact KL; without it
        there is none."""
        total = 0.0
        for numbers, batch, responses in self._batches(rows):
            states_TD, kept = self.network.forward(
                batch.ids, keep=True, lengths=batch.lengths, after=batch.after
            )
            logits_CV = self._logits(states_TD[batch.places])
            log_p, log_z = log_probs(logits_CV, responses, self.temperature)
            kl = logits_gradient(
                logits_CV,
                responses,
                log_z,
                coefficients(responses.sums(log_p), numbers),
                kl_weight=kl_weight,
                old_logits=None if old is None else self._old_logits(old, numbers),
                temperature=self.temperature,
            )
            grad_TD = torch.zeros_like(states_TD)
            grad_TD.index_add_(0, batch.places, torch.mm(logits_CV, self.network.head_VD))
            self.network.backward(grad_TD, kept)
            total += float(kl.sum())
        return total

    def _old_logits(self, old: Sequence[Score], numbers: Sequence[int]) -> Callable[[slice], Tensor]:
        parts = [old[number].states for number in numbers]
        assert all(part is not None for part in parts)
        states_CD = torch.cat([part for part in parts if part is not None])
        return lambda block: self._logits(states_CD[block])

    def _logits(self, states_CD: Tensor) -> Tensor:
        return torch.mm(states_CD, self.network.head_VD.t())

    def _batches(self, rows: Sequence[Example]) -> Iterator[tuple[list[int], SharedBatch, Responses]]:
        """The rows in passes of a bounded number of tokens; a long one has a pass of its own."""
        families, costs = families_of(rows, self.pass_tokens)
        for chosen in passes(costs, self.pass_tokens):
            numbers = [number for family in chosen for number in families[family]]
            batch = SharedBatch.of([[rows[number] for number in families[family]] for family in chosen])
            counts = torch.tensor([rows[number].answers for number in numbers])
            owner = torch.repeat_interleave(torch.arange(len(numbers)), counts)
            yield numbers, batch, Responses(batch.wanted, owner, len(numbers))
