"""Log-likelihoods of continuations: the engine's own, whatever was shared, in whatever order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pomona.errors import PomonaError
from pomona.evaluation.continuations import Continuations, common_length, fit
from pomona.runtime.engine import Engine

SHARED = list(range(5, 45))
PAIRS = [
    ([*SHARED, 7, 8], [3]),
    ([*SHARED, 9], [1, 2, 3]),
    ([*SHARED, 7, 8], [4, 5]),
    ([11, 12], [13]),
    ([*SHARED, 7, 8], [3, 1, 2]),
    (SHARED, [7, 8]),
    ([6], [5, 4]),
]


@pytest.fixture(scope="module")
def engine(small_dir: Path) -> Engine:
    return Engine.load(small_dir, threads=1, prefix_cache=True)


def alone(engine: Engine, context: list[int], continuation: list[int]) -> float:
    return float(engine.score([*context, *continuation])[len(context) - 1 :].sum(dtype="float64"))


def test_they_are_those_of_a_fresh_sequence(engine: Engine) -> None:
    scorer = Continuations(engine)
    found = scorer.score(PAIRS)
    for pair, one in zip(PAIRS, found, strict=True):
        assert one.log_p == pytest.approx(alone(engine, *pair), abs=2e-4)


def test_greedy_says_whether_the_model_would_have_written_it(engine: Engine) -> None:
    context, written = SHARED[:10], []
    for _ in range(3):
        written.append(int(engine.logits([*context, *written])[-1].argmax()))
    other = (written[1] + 1) % 100
    scorer = Continuations(engine)
    right, wrong = scorer.score([(context, written), (context, [written[0], other, written[2]])])
    assert right.greedy and not wrong.greedy


def test_order_and_company_change_nothing(engine: Engine) -> None:
    scorer = Continuations(engine)
    forward = scorer.score(PAIRS)
    backward = scorer.score(PAIRS[::-1])[::-1]
    scorer = Continuations(engine)
    [single] = scorer.score(PAIRS[2:3])
    assert forward == backward and forward[2] == single


def test_what_is_shared_is_computed_once(engine: Engine) -> None:
    scorer = Continuations(engine)
    shared = list(range(100, 180))
    scorer.score([([*shared, i], [j]) for i in range(5) for j in range(4)])
    first = scorer.computed_tokens
    assert first == len(shared) + 5  # 80 tokens are whole pages
    scorer.score([([*shared, i], [j, j]) for i in range(5) for j in range(4)])
    assert scorer.computed_tokens - first <= 1 + 20 * (16 + 2)


def test_no_sequence_is_left_behind(engine: Engine) -> None:
    free = engine.native.free_tokens
    Continuations(engine).score(PAIRS)
    with pytest.raises(PomonaError):
        Continuations(engine).score([*PAIRS, ([1, 2], [10**6])])
    with pytest.raises(PomonaError, match="at most"):
        Continuations(engine).score([*PAIRS, ([1, 2], [3] * 600)])
    assert engine.native.free_tokens == free


def test_without_a_prefix_cache_the_results_are_the_same(engine: Engine, small_dir: Path) -> None:
    bare = Engine.load(small_dir, threads=1, prefix_cache=False)
    assert Continuations(bare).score(PAIRS) == Continuations(engine).score(PAIRS)


def test_a_long_context_goes_through_in_pieces(engine: Engine) -> None:
    context = [int(i) for i in np.random.default_rng(0).integers(0, 700, 1100)]
    scorer = Continuations(engine)
    [found] = scorer.score([(context, [5, 6])])
    assert found.log_p == pytest.approx(alone(engine, context, [5, 6]), abs=2e-4)


def test_a_pair_that_is_too_long_loses_the_beginning_of_its_context() -> None:
    assert fit([1, 2, 3, 4], [5, 6], 8) == ([1, 2, 3, 4], [5, 6])
    assert fit([1, 2, 3, 4], [5, 6], 4) == ([2, 3, 4], [5, 6])  # four are read, the last is foretold
    with pytest.raises(PomonaError, match="does not fit"):
        fit([1], [2, 3, 4, 5], 3)


@pytest.mark.parametrize("pair", [([], [1]), ([1], [])])
def test_half_a_pair_is_refused(engine: Engine, pair: tuple[list[int], list[int]]) -> None:
    with pytest.raises(PomonaError, match="at least a token"):
        Continuations(engine).score([pair])


def test_helpers() -> None:
    assert common_length([1, 2, 3], [1, 2, 4, 5]) == 2 and common_length([], [1]) == 0
    assert common_length([1, 2], [1, 2, 3]) == 2
