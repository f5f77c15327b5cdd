"""Sampling: what its settings may be, and that the engine draws with exactly these, where they are meant.

How the native sampler filters and draws is tested in tests/native.
"""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pomona import _native
from pomona.errors import PomonaError
from pomona.models.presets import PRESETS
from pomona.models.random_init import random_model
from pomona.runtime.engine import Engine, StepInput
from pomona.runtime.sampling import Sampling

LIMITS = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 1 << 30),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "seed": (0, (1 << 64) - 1),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    directory = random_model(PRESETS["afm-nano"], tmp_path_factory.mktemp("sampling") / "nano", seed=6)
    return Engine.load(directory, threads=1)


def test_greedy_is_the_default() -> None:
    assert Sampling() == Sampling(
        temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=0
    )


def test_it_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Sampling().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", LIMITS)
def test_every_setting_has_its_range(name: str) -> None:
    low, high = LIMITS[name]
    for value in (low, high):
        assert getattr(Sampling(**{name: value}), name) == value  # type: ignore[arg-type]
        Sampling(**{name: value}).native()  # type: ignore[arg-type]
    below = low - 1 if isinstance(low, int) else math.nextafter(low, -math.inf)
    above = high + 1 if isinstance(high, int) else math.nextafter(high, math.inf)
    for value in (below, above, -1, math.nan, math.inf, -math.inf, 10**400):
        with pytest.raises(PomonaError, match=f"^{name} = ") as caught:
            Sampling(**{name: value})  # type: ignore[arg-type]
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", 2.5), ("seed", 1.5), ("temperature", "1"), ("top_p", None), ("seed", "a")]
)
def test_a_setting_of_another_kind_is_refused_before_it_is_used(name: str, value: Any) -> None:
    with pytest.raises(PomonaError, match=f"^{name} = "):
        Sampling(**{name: value})


sampling = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.2, 1.0, 1.7, 100.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 5000]),
    top_p=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3]),
    seed=st.integers(0, (1 << 64) - 1),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sampling=sampling, length=st.integers(1, 40), parts=st.integers(1, 3))
def test_the_engine_draws_from_its_logits_with_these_settings_at_this_position(
    engine: Engine, sampling: Sampling, length: int, parts: int
) -> None:
    """The history that the penalty sees is the whole sequence, and the position that the draw depends on is
    its length, however the tokens came."""
    ids = np.random.default_rng(length).integers(0, engine.config.vocab_size, length).tolist()
    expected = _native.sample(engine.logits(ids)[-1], sampling.native(), np.array(ids, np.int32), len(ids))
    with engine.new_sequence() as sequence:
        for part in filter(len, np.array_split(np.array(ids), parts)):
            token = engine.step([StepInput(sequence, part.tolist(), sampling)])[0]
    assert token == expected


@pytest.mark.parametrize(
    "narrow",
    [{"temperature": 1e-6}, {"top_k": 1}, {"top_p": 0.0}, {"top_p": 1e-9}, {"min_p": 1.0}],
    ids=str,
)
def test_settings_that_leave_one_token_are_greedy(engine: Engine, narrow: dict[str, Any]) -> None:
    ids = [5, 6, 7]
    best = int(engine.logits(ids)[-1].argmax())
    for seed in range(20):
        with engine.new_sequence() as sequence:
            chosen = Sampling(**{"temperature": 1.0, "seed": seed, **narrow})
            assert engine.step([StepInput(sequence, ids, chosen)]) == [best]


def test_every_input_of_a_step_is_drawn_with_its_own_settings(engine: Engine) -> None:
    ids = [5, 6, 7]
    choices = [Sampling(), *(Sampling(temperature=1.5, seed=seed) for seed in range(12))]
    sequences = [engine.new_sequence() for _ in choices]
    tokens = engine.step([StepInput(s, ids, c) for s, c in zip(sequences, choices, strict=True)])
    for sequence, choice, token in zip(sequences, choices, tokens, strict=True):
        sequence.truncate(0)
        assert engine.step([StepInput(sequence, ids, choice)]) == [token]
        sequence.close()
    assert len(set(tokens)) > 6


def test_draws_follow_the_softmax_of_the_logits(engine: Engine) -> None:
    """Total variation distance of 3,000 draws over the 16 likeliest tokens (top-k), well within chance."""
    ids, count, kept = [11, 12, 13], 3000, 16
    logits = engine.logits(ids)[-1].astype(np.float64)
    likeliest = np.argsort(-logits)[:kept]
    expected = np.exp(logits[likeliest] / 0.5) / np.exp(logits[likeliest] / 0.5).sum()
    drawn = np.zeros(engine.config.vocab_size)
    with engine.new_sequence() as sequence:
        engine.step([StepInput(sequence, ids[:-1])])
        for seed in range(count):
            chosen = Sampling(temperature=0.5, top_k=kept, seed=seed)
            drawn[engine.step([StepInput(sequence, ids[-1:], chosen)])[0]] += 1
            sequence.truncate(2)
    assert drawn.sum() == drawn[likeliest].sum() == count
    assert 0.5 * np.abs(drawn[likeliest] / count - expected).sum() < 0.04
