"""generate(): which tokens come, when it ends, and that it leaves nothing behind in the cache."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pomona.errors import PomonaError
from pomona.models.presets import PRESETS
from pomona.models.random_init import random_model
from pomona.runtime.engine import Engine
from pomona.runtime.generate import generate
from pomona.runtime.sampling import Sampling

CONTEXT = 64
CONFIG = replace(
    PRESETS["afm-nano"],
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    head_dim=16,
    max_position_embeddings=CONTEXT,
)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
GREEDY = Sampling()
RANDOM = Sampling(temperature=1.0, seed=17)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(CONFIG, tmp_path_factory.mktemp("generate") / "small", seed=8, perturb_norms=True)


@pytest.fixture(scope="module")
def engine(directory: Path) -> Engine:
    return Engine.load(directory, threads=1, kv_tokens=256)


def tokens_of(
    engine: Engine,
    prompt: list[int],
    sampling: Sampling = GREEDY,
    max_new_tokens: int = 24,
    stop_ids: Collection[int] = (),
) -> list[int]:
    before = engine.native.free_tokens
    tokens = list(
        generate(engine, prompt, sampling=sampling, max_new_tokens=max_new_tokens, stop_ids=stop_ids)
    )
    assert engine.native.free_tokens == before
    return tokens


def test_greedy_is_the_likeliest_token_after_everything_so_far(engine: Engine) -> None:
    tokens = tokens_of(engine, PROMPT)
    assert len(tokens) == 24
    for end in range(len(tokens)):
        assert tokens[end] == int(engine.logits(PROMPT + tokens[:end])[-1].argmax())


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_it_ends_after_max_new_tokens(engine: Engine, count: int) -> None:
    assert tokens_of(engine, PROMPT, RANDOM, count) == tokens_of(engine, PROMPT, RANDOM)[:count]


def test_it_ends_at_a_stop_id_which_does_not_come(engine: Engine) -> None:
    tokens = tokens_of(engine, PROMPT, RANDOM)
    for stop_ids in ({tokens[0]}, [tokens[9]], (tokens[9], tokens[4]), {999_999}):
        ends = [at for at, token in enumerate(tokens) if token in stop_ids]
        assert tokens_of(engine, PROMPT, RANDOM, stop_ids=stop_ids) == tokens[: min(ends, default=24)]


@pytest.mark.parametrize("length", [1, 40, CONTEXT - 2, CONTEXT - 1])
def test_it_ends_with_the_context(engine: Engine, length: int) -> None:
    prompt = [token % CONFIG.vocab_size for token in range(length)]
    assert len(tokens_of(engine, prompt, max_new_tokens=1000)) == CONTEXT - length


def test_a_small_cache_ends_it_too(directory: Path) -> None:
    engine = Engine.load(directory, threads=1, kv_tokens=32)
    assert len(tokens_of(engine, PROMPT, max_new_tokens=1000)) == 32 - len(PROMPT)
    with pytest.raises(PomonaError, match="the context holds 32"):
        tokens_of(engine, [1] * 40)


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 1, 5000])
def test_a_prompt_that_fills_the_context_is_refused(engine: Engine, length: int) -> None:
    before = engine.native.free_tokens
    with pytest.raises(
        PomonaError, match=f"the prompt has {length:,} tokens, the context holds 64; shorten it"
    ):
        tokens_of(engine, [1] * length)
    assert engine.native.free_tokens == before


def test_a_prompt_without_tokens_is_refused(engine: Engine) -> None:
    with pytest.raises(PomonaError, match="no tokens"):
        tokens_of(engine, [])


def test_a_prompt_outside_the_vocabulary_is_refused_and_frees_its_sequence(engine: Engine) -> None:
    before = engine.native.free_tokens
    with pytest.raises(PomonaError, match="512 is outside the vocabulary"):
        tokens_of(engine, [1, 512])
    assert engine.native.free_tokens == before


def test_a_seed_repeats_its_answer_and_another_gives_another(engine: Engine) -> None:
    answers = [tokens_of(engine, PROMPT, replace(RANDOM, seed=seed)) for seed in range(8)]
    assert answers == [tokens_of(engine, PROMPT, replace(RANDOM, seed=seed)) for seed in range(8)]
    assert len({tuple(answer) for answer in answers}) == 8


def test_the_number_of_threads_does_not_change_a_drawn_answer(directory: Path, engine: Engine) -> None:
    for threads in (2, 3):
        assert tokens_of(Engine.load(directory, threads=threads), PROMPT, RANDOM) == tokens_of(
            engine, PROMPT, RANDOM
        )


def test_answers_that_are_read_in_turn_do_not_disturb_each_other(engine: Engine) -> None:
    cases = [
        (PROMPT, RANDOM),
        (PROMPT[::-1], RANDOM),
        (PROMPT * 3, Sampling()),
        (PROMPT, Sampling(temperature=2.0)),
    ]
    alone = [tokens_of(engine, prompt, sampling) for prompt, sampling in cases]
    readers = [
        generate(engine, prompt, sampling=sampling, max_new_tokens=24, stop_ids=())
        for prompt, sampling in cases
    ]
    together = list(zip(*readers, strict=True))
    assert [list(answer) for answer in zip(*together, strict=True)] == alone


def test_a_repetition_penalty_avoids_what_was_there(engine: Engine) -> None:
    """So large a penalty leaves a token that was there behind every other one that has a positive logit."""
    tokens = tokens_of(engine, PROMPT, Sampling(repetition_penalty=100.0), 40)
    assert len(set(tokens)) == 40 and not set(tokens) & set(PROMPT)
    greedy = tokens_of(engine, PROMPT, max_new_tokens=40)
    assert len(set(greedy)) < 40 or set(greedy) & set(PROMPT)


def test_nothing_is_held_before_the_first_token_or_after_the_reader_left(engine: Engine) -> None:
    before = engine.native.free_tokens
    tokens = generate(engine, PROMPT, sampling=Sampling(), max_new_tokens=24, stop_ids=())
    assert engine.native.free_tokens == before
    next(tokens)
    assert engine.native.free_tokens < before
    tokens.close()  # type: ignore[attr-defined]
    assert engine.native.free_tokens == before


def test_numpy_tokens_will_do(engine: Engine) -> None:
    tokens = tokens_of(engine, [int(t) for t in np.array(PROMPT)])
    assert tokens == tokens_of(engine, list(np.array(PROMPT)))
