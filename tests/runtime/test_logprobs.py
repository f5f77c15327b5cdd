"""Log probabilities of an answer's tokens: the model's own, whatever chose the tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scheduler_helpers import CONFIG, WAIT, prompt

from pomona import _native
from pomona.errors import PomonaError
from pomona.runtime.adapters import AdapterCache
from pomona.runtime.engine import Engine, StepInput
from pomona.runtime.sampling import Sampling
from pomona.runtime.scheduler import Request, Scheduler


@pytest.fixture
def scheduler(engine: Engine, adapters: AdapterCache) -> Iterator[Scheduler]:
    with Scheduler(engine, adapters=adapters) as scheduler:
        yield scheduler


def log_softmax(logits: Any) -> Any:
    wide = logits.astype(np.float64)
    return wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())


def answered(scheduler: Scheduler, request: Request) -> tuple[list[int], list[Any]]:
    ticket = scheduler.submit(request)
    completion = ticket.result(WAIT)
    return list(completion.token_ids), ticket.logprobs


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.3, top_p=0.9, seed=4),
        Sampling(temperature=1.0, seed=2, frequency_penalty=1.0, logit_bias=((5, 8.0), (6, -100.0))),
        Sampling(repetition_penalty=2.0),
    ],
    ids=["greedy", "drawn", "biased", "penalized"],
)
@pytest.mark.parametrize("lookup", [False, True])
def test_are_the_models_own_whatever_chose_the_token(
    scheduler: Scheduler, plain: Engine, sampling: Sampling, lookup: bool
) -> None:
    ids = prompt(20)
    request = Request(ids, sampling, max_new_tokens=24, lookup=lookup, logprobs=4)
    tokens, logprobs = answered(scheduler, request)
    logits = plain.logits([*ids, *tokens])[len(ids) - 1 :]
    assert len(tokens) == 24 and len(logprobs) >= 24
    for token, row, told in zip(tokens, logits, logprobs, strict=False):
        expected = log_softmax(row)
        assert told.chosen == pytest.approx(expected[token], abs=1e-4)
        best = np.argsort(-row, kind="stable")[:4]
        assert [other for other, _ in told.top] == best.tolist()
        assert [value for _, value in told.top] == pytest.approx(expected[best].tolist(), abs=1e-4)


@pytest.mark.parametrize("top", [0, 1, 20])
def test_asking_changes_no_token(scheduler: Scheduler, top: int) -> None:
    request = Request(prompt(30), Sampling(temperature=1.0, seed=9), max_new_tokens=16, adapter="a")
    tokens, none = answered(scheduler, request)
    again, logprobs = answered(scheduler, replace(request, logprobs=top))
    assert again == tokens and none == []
    assert {len(one.top) for one in logprobs} == {top}


def test_are_there_as_soon_as_the_token(scheduler: Scheduler) -> None:
    ticket = scheduler.submit(Request(prompt(10), max_new_tokens=40, lookup=True, logprobs=1))
    for number, token in enumerate(ticket):
        assert ticket.logprobs[number].top[0][0] == token


def test_penalties_do_not_count_the_prompt(scheduler: Scheduler, plain: Engine) -> None:
    """The first token of the answer is what it is without penalties."""
    ids = prompt(200)
    first = int(plain.logits(ids)[-1].argmax())
    tokens, _ = answered(
        scheduler, Request((*ids, first, *ids[-20:]), Sampling(presence_penalty=50.0), max_new_tokens=30)
    )
    unpenalized = int(plain.logits((*ids, first, *ids[-20:]))[-1].argmax())
    assert tokens[0] == unpenalized
    assert len(set(tokens)) == 30  # and none is said twice


def test_a_step_of_several_inputs_fills_each_its_own(plain: Engine) -> None:
    wanted = [_native.Logprobs(2), None, _native.Logprobs(3)]
    prompts = [prompt(5, seed) for seed in range(3)]
    sequences = [plain.new_sequence() for _ in prompts]
    inputs = [
        StepInput(sequence, ids, logprobs=place)
        for sequence, ids, place in zip(sequences, prompts, wanted, strict=True)
    ]
    tokens = plain.step(inputs)
    for sequence in sequences:
        sequence.close()
    for ids, token, place in zip(prompts, tokens, wanted, strict=True):
        if place is not None:
            [(chosen, top)] = place.entries()
            assert top[0] == (token, chosen)
            assert chosen == pytest.approx(log_softmax(plain.logits(ids)[-1])[token], abs=1e-4)


def test_bounds() -> None:
    for wrong in (-1, 65):
        with pytest.raises(ValueError, match="top must be"):
            _native.Logprobs(wrong)
        with pytest.raises(PomonaError, match="logprobs = "):
            Request((1,), logprobs=wrong)


def test_a_bias_outside_the_vocabulary_is_refused_at_the_door(scheduler: Scheduler, plain: Engine) -> None:
    for token in (-1, CONFIG.vocab_size):
        sampling = Sampling(logit_bias=((token, 1.0),))
        with pytest.raises(PomonaError, match="outside the vocabulary"):
            scheduler.submit(Request(prompt(5), sampling))
        with plain.new_sequence() as sequence, pytest.raises(PomonaError, match="outside the vocabulary"):
            plain.step([StepInput(sequence, prompt(5), sampling)])
