"""The sampler: greedy is the argmax, draws follow transformers' filters, and seed and position decide a draw.

The expected distributions come from the logits processors of transformers, applied in its own order.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pomona import _native

NO_HISTORY = np.zeros(0, np.int32)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Filters:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def sampling(self, seed: int = 0) -> _native.Sampling:
        return _native.Sampling(
            self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty, seed
        )


def draws(
    logits: Floats, filters: Filters, count: int, *, seed: int = 0, history: NDArray[np.int32] = NO_HISTORY
) -> list[int]:
    """The tokens at positions 0 .. count - 1."""
    sampling = filters.sampling(seed)
    return [_native.sample(logits, sampling, history, position) for position in range(count)]


def greedy(logits: Floats, filters: Filters = Filters(temperature=0.0)) -> int:
    return _native.sample(logits, filters.sampling(), NO_HISTORY, 0)


def reference(
    logits: Floats, filters: Filters, history: NDArray[np.int32] = NO_HISTORY
) -> NDArray[np.float64]:
    """The distribution that transformers would draw from."""
    import torch
    from transformers.generation import logits_process as hf

    scores = torch.from_numpy(logits.astype(np.float64))[None]
    ids = torch.from_numpy(history.astype(np.int64))[None]
    steps: list[hf.LogitsProcessor] = []
    if filters.repetition_penalty != 1.0:
        steps.append(hf.RepetitionPenaltyLogitsProcessor(filters.repetition_penalty))
    steps.append(hf.TemperatureLogitsWarper(filters.temperature))
    if filters.top_k > 0:
        steps.append(hf.TopKLogitsWarper(filters.top_k))
    if filters.top_p < 1.0:
        steps.append(hf.TopPLogitsWarper(filters.top_p))
    if filters.min_p > 0.0:
        steps.append(hf.MinPLogitsWarper(filters.min_p))
    for step in steps:
        scores = step(ids, scores)
    probabilities: NDArray[np.float64] = torch.softmax(scores, -1)[0].numpy()
    return probabilities


def assert_drawn_from(tokens: list[int], expected: NDArray[np.float64]) -> None:
    """Chi-square, five standard deviations wide; what has no probability is never drawn."""
    counts = np.bincount(tokens, minlength=len(expected)).astype(np.float64)
    assert len(counts) == len(expected)
    assert (counts[expected == 0] == 0).all()
    wanted = expected * len(tokens)
    common = wanted >= 5
    cells = np.append(wanted[common], wanted[~common].sum())
    seen = np.append(counts[common], counts[~common].sum())
    cells, seen = cells[cells > 0], seen[cells > 0]
    freedom = len(cells) - 1
    chi_square = float(((seen - cells) ** 2 / cells).sum())
    assert chi_square <= freedom + 5 * np.sqrt(2 * freedom) + 1e-9


# --- greedy


@given(
    st.lists(
        st.sampled_from([-3.0, -1.0, -0.0, 0.0, 1.0, 2.0, 1e30, -1e30, -np.inf]), min_size=1, max_size=150
    )
)
@settings(max_examples=300, deadline=None)
def test_greedy_is_the_first_of_the_largest(values: list[float]) -> None:
    assume(max(values) > -np.inf)
    logits = np.array(values, np.float32)
    assert greedy(logits) == int(np.argmax(logits))


@pytest.mark.parametrize("size", [1, 7, 16, 17, 1000, 49_152])
def test_greedy_finds_the_largest_wherever_it_stands(size: int) -> None:
    logits = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    for place in {0, size // 2, size - 2, size - 1} & set(range(size)):
        spiked = logits.copy()
        spiked[place] = 50.0
        assert greedy(spiked) == place
        assert greedy(spiked, Filters(temperature=1.0, top_k=1)) == place
        assert greedy(spiked, Filters(temperature=1.0, top_p=0.0)) == place
        assert greedy(spiked, Filters(temperature=1.0, min_p=1.0)) == place
        assert greedy(spiked, Filters(temperature=1e-30)) == place


# --- draws


FILTERS = {
    "plain": Filters(),
    "cold": Filters(temperature=0.6),
    "hot": Filters(temperature=1.7),
    "top-k": Filters(top_k=7),
    "top-k wider than the vocabulary": Filters(top_k=5000),
    "top-p": Filters(top_p=0.8),
    "top-p of nearly all": Filters(top_p=0.999),
    "min-p": Filters(min_p=0.1),
    "penalty": Filters(repetition_penalty=1.4),
    "penalty below one": Filters(repetition_penalty=0.8),
    "temperature before top-p": Filters(temperature=2.5, top_p=0.6),
    "top-k before top-p": Filters(top_k=5, top_p=0.7),
    "temperature before min-p": Filters(temperature=2.0, min_p=0.3),
    "all": Filters(temperature=1.3, top_k=30, top_p=0.9, min_p=0.05, repetition_penalty=1.2),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("vocabulary", [40, 1500])
def test_draws_follow_the_distribution_of_transformers(name: str, vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = (rng.standard_normal(vocabulary) * 2).astype(np.float32)
    history = rng.integers(0, vocabulary, 30).astype(np.int32)
    history = np.append(history, history[:10])  # a token that came twice is penalised once
    tokens = draws(logits, FILTERS[name], 20_000 if vocabulary < 100 else 8_000, history=history)
    assert_drawn_from(tokens, reference(logits, FILTERS[name], history))


def test_the_reference_distributions_differ() -> None:
    """Else the test above would accept a sampler that forgets a filter."""
    rng = np.random.default_rng(40)
    logits = (rng.standard_normal(40) * 2).astype(np.float32)
    history = rng.integers(0, 40, 30).astype(np.int32)
    plain = draws(logits, Filters(), 20_000)
    for name, filters in FILTERS.items():
        if name in ("plain", "top-k wider than the vocabulary"):
            continue
        with pytest.raises(AssertionError):
            assert_drawn_from(plain, reference(logits, filters, history))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 300),
    st.builds(
        Filters,
        temperature=st.floats(0.05, 5.0),
        top_k=st.integers(0, 40),
        top_p=st.floats(0.01, 1.0),
        min_p=st.floats(0.0, 1.0),
        repetition_penalty=st.floats(0.5, 2.0),
    ),
)
@settings(max_examples=80, deadline=None)
def test_what_transformers_would_filter_out_is_never_drawn(
    seed: int, vocabulary: int, filters: Filters
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(vocabulary) * 3).astype(np.float32)
    history = rng.integers(0, vocabulary, 20).astype(np.int32)
    # A hair wider, for a token that stands exactly at a threshold in float32.
    wider = Filters(
        filters.temperature,
        filters.top_k,
        min(filters.top_p + 1e-5, 1.0),
        filters.min_p * (1 - 1e-5),
        filters.repetition_penalty,
    )
    allowed = set(np.flatnonzero(reference(logits, wider, history)).tolist())
    assert set(draws(logits, filters, 100, seed=seed, history=history)) <= allowed


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 3.0))
@settings(max_examples=100, deadline=None)
def test_the_penalty_is_that_of_transformers_for_greedy_too(seed: int, penalty: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(50).astype(np.float32)  # of both signs: one is divided, the other multiplied
    history = rng.integers(0, 50, 60).astype(np.int32)
    expected = reference(logits, Filters(repetition_penalty=penalty), history)
    token = _native.sample(logits, _native.Sampling(repetition_penalty=penalty), history, 0)
    assert expected[token] >= expected.max() * (1 - 1e-6)


def test_sampling_leaves_the_callers_logits_as_they_are() -> None:
    logits = np.arange(20, dtype=np.float32)
    before = logits.copy()
    filters = FILTERS["all"]
    draws(logits, filters, 3, history=np.arange(20, dtype=np.int32))
    np.testing.assert_array_equal(logits, before)


# --- the random numbers


def test_seed_and_position_decide_a_draw() -> None:
    logits = np.zeros(1000, np.float32)
    first = draws(logits, Filters(), 50, seed=5)
    assert draws(logits, Filters(), 50, seed=5) == first
    assert len(set(first)) > 40  # positions differ
    assert draws(logits, Filters(), 50, seed=6) != first
    assert draws(logits, Filters(), 50, seed=2**64 - 1) != first
    backwards = [
        _native.sample(logits, _native.Sampling(temperature=1.0, seed=5), NO_HISTORY, p)
        for p in range(49, -1, -1)
    ]
    assert backwards[::-1] == first


@pytest.mark.parametrize(("seed_step", "position_step"), [(0, 1), (1, 0), (1, 1)])
def test_neighbouring_draws_are_independent(seed_step: int, position_step: int) -> None:
    """Positions of one sequence, and sequences with consecutive seeds at one position."""
    logits = np.zeros(16, np.float32)
    tokens = [
        _native.sample(
            logits, _native.Sampling(temperature=1.0, seed=i * seed_step), NO_HISTORY, i * position_step
        )
        for i in range(40_000)
    ]
    joint = [16 * a + b for a, b in zip(tokens[::2], tokens[1::2], strict=True)]
    assert_drawn_from(joint, np.full(256, 1 / 256))


# --- logits that are no numbers


def spoiled(seed: int) -> tuple[Floats, set[int]]:
    """Logits with NaN in about a third of the places, and these places."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(int(rng.integers(2, 200))).astype(np.float32)
    bad = rng.random(len(logits)) < 0.33
    bad[rng.integers(len(logits))] = False
    logits[bad] = np.nan
    return logits, set(np.flatnonzero(bad).tolist())


@pytest.mark.parametrize("seed", range(20))
def test_nan_is_never_drawn(seed: int) -> None:
    logits, bad = spoiled(seed)
    for filters in (
        Filters(),
        Filters(top_k=3),
        Filters(top_p=0.9),
        Filters(min_p=0.1),
        Filters(temperature=0.01),
    ):
        assert not set(draws(logits, filters, 100)) & bad
    without = np.where(np.isnan(logits), np.float32(-np.inf), logits)
    assert_drawn_from(draws(logits, Filters(), 3000), reference(without, Filters()))


@pytest.mark.parametrize("seed", range(20))
def test_greedy_passes_over_nan(seed: int) -> None:
    logits, _ = spoiled(seed)
    assert greedy(logits) == int(np.nanargmax(logits))


def test_minus_infinity_is_never_drawn() -> None:
    logits = np.full(100, -np.inf, np.float32)
    logits[[17, 63]] = [1.0, 2.0]
    assert greedy(logits) == 63
    for filters in (Filters(), Filters(top_k=50), Filters(top_p=0.99999), Filters(temperature=100.0)):
        assert set(draws(logits, filters, 300)) == {17, 63}


@pytest.mark.parametrize("value", [-np.inf, np.nan])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_any_number_there_is_still_a_token(value: float, temperature: float) -> None:
    logits = np.full(100, value, np.float32)
    assert 0 <= greedy(logits, Filters(temperature=temperature)) < 100
    logits[40] = np.inf
    assert greedy(logits, Filters(temperature=temperature)) == 40


# --- what is refused


@pytest.mark.parametrize("token", [-1, 10, 2**31 - 1])
@pytest.mark.parametrize("penalty", [1.0, 1.1])
def test_a_history_outside_the_vocabulary_is_refused(token: int, penalty: float) -> None:
    sampling = _native.Sampling(repetition_penalty=penalty)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        _native.sample(np.zeros(10, np.float32), sampling, np.array([3, token], np.int32), 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_logits_are_refused(temperature: float) -> None:
    """In a process of its own: a crash is a failure of this test alone."""
    program = (
        "import numpy as np; from pomona import _native\n"
        f"sampling = _native.Sampling(temperature={temperature})\n"
        "try:\n"
        "    _native.sample(np.zeros(0, np.float32), sampling, np.zeros(0, np.int32), 0)\n"
        "except ValueError as error:\n"
        "    print('refused:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("refused: ")


# --- penalties of the answer, and the bias


@given(st.integers(0, 2**32 - 1), st.floats(-2.0, 2.0), st.floats(-2.0, 2.0), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_penalties_count_the_tokens_of_the_answer_alone(
    seed: int, presence: float, frequency: float, start: int
) -> None:
    """logit - presence * [it was said] - frequency * times, of what stands from answer_start on."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(50).astype(np.float32)
    history = rng.integers(0, 50, 60).astype(np.int32)
    counts = np.bincount(history[start:], minlength=50)
    expected = logits - presence * (counts > 0) - frequency * counts
    sampling = _native.Sampling(presence_penalty=presence, frequency_penalty=frequency, answer_start=start)
    token = _native.sample(logits, sampling, history, 60)
    assert expected[token] >= expected.max() - 1e-4


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_a_bias_is_added_after_the_penalties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(50).astype(np.float32)
    history = rng.integers(0, 50, 60).astype(np.int32)
    bias = [
        (int(token), float(value))
        for token, value in zip(rng.permutation(50)[:5], rng.normal(size=5) * 3, strict=True)
    ]
    penalized = logits.copy()
    seen = np.unique(history)
    penalized[seen] = np.where(logits[seen] > 0, logits[seen] / 1.3, logits[seen] * 1.3)
    for token, value in bias:
        penalized[token] += value
    token = _native.sample(logits, _native.Sampling(repetition_penalty=1.3, bias=bias), history, 60)
    assert penalized[token] >= penalized.max() - 1e-4


def test_a_bias_bans_and_forces_draws() -> None:
    logits = np.zeros(8, np.float32)
    banned = _native.Sampling(temperature=1.0, seed=3, bias=[(n, -1000.0) for n in range(6)])
    assert {_native.sample(logits, banned, NO_HISTORY, p) for p in range(200)} == {6, 7}
    forced = _native.Sampling(temperature=1.0, seed=3, bias=[(4, 1000.0)])
    assert {_native.sample(logits, forced, NO_HISTORY, p) for p in range(50)} == {4}


@pytest.mark.parametrize("token", [-1, 8])
def test_a_bias_of_a_token_that_there_is_not_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        _native.sample(np.zeros(8, np.float32), _native.Sampling(bias=[(token, 1.0)]), NO_HISTORY, 0)
