"""Log-likelihoods of continuations: the engine's own, whatever was shared, in whatever order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pomona.errors import PomonaError
from pomona.evaluation.continuations import Continuations, common_length, fit, log_sum_exp
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
    return Engine.load(small_dir, threads=1)


def alone(engine: Engine, context: list[int], continuation: list[int]) -> float:
    return float(engine.score([*context, *continuation])[len(context) - 1 :].sum(dtype="float64"))


def test_they_are_those_of_a_fresh_sequence(engine: Engine) -> None:
    with Continuations(engine) as scorer:
        found = scorer.score(PAIRS)
    for pair, one in zip(PAIRS, found, strict=True):
        assert one.log_p == pytest.approx(alone(engine, *pair), abs=2e-4)


def test_greedy_says_whether_the_model_would_have_written_it(engine: Engine) -> None:
    context, written = SHARED[:10], []
    for _ in range(3):
        written.append(int(engine.logits([*context, *written])[-1].argmax()))
    other = (written[1] + 1) % 100
    with Continuations(engine) as scorer:
        right, wrong = scorer.score([(context, written), (context, [written[0], other, written[2]])])
    assert right.greedy and not wrong.greedy


def test_order_and_company_change_nothing(engine: Engine) -> None:
    with Continuations(engine) as scorer:
        forward = scorer.score(PAIRS)
        backward = scorer.score(PAIRS[::-1])[::-1]
    with Continuations(engine) as scorer:
        [single] = scorer.score(PAIRS[2:3])
    assert forward == backward and forward[2] == single


def test_what_is_shared_is_computed_once(engine: Engine) -> None:
    with Continuations(engine) as scorer:
        scorer.score([([*SHARED, i], [j]) for i in range(5) for j in range(4)])
        assert scorer.computed_tokens == len(SHARED) + 5


def test_a_long_context_goes_through_in_pieces(engine: Engine) -> None:
    context = [int(i) for i in np.random.default_rng(0).integers(0, 700, 1100)]
    with Continuations(engine) as scorer:
        [found] = scorer.score([(context, [5, 6])])
    assert found.log_p == pytest.approx(alone(engine, context, [5, 6]), abs=2e-4)


def test_a_pair_that_is_too_long_loses_the_beginning_of_its_context() -> None:
    assert fit([1, 2, 3, 4], [5, 6], 8) == ([1, 2, 3, 4], [5, 6])
    assert fit([1, 2, 3, 4], [5, 6], 4) == ([2, 3, 4], [5, 6])  # four are read, the last is foretold
    with pytest.raises(PomonaError, match="does not fit"):
        fit([1], [2, 3, 4, 5], 3)


@pytest.mark.parametrize("pair", [([], [1]), ([1], [])])
def test_half_a_pair_is_refused(engine: Engine, pair: tuple[list[int], list[int]]) -> None:
    with Continuations(engine) as scorer, pytest.raises(PomonaError, match="at least a token"):
        scorer.score([pair])


def test_helpers() -> None:
    assert common_length([1, 2, 3], [1, 2, 4, 5]) == 2 and common_length([], [1]) == 0
    assert common_length([1, 2], [1, 2, 3]) == 2
    row = np.linspace(-50, 80, 1000).astype(np.float32)
    assert log_sum_exp(row) == pytest.approx(float(np.logaddexp.reduce(row.astype(np.float64))), abs=1e-9)
