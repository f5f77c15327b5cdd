"""perplexity(): which tokens count under each protocol, in which precision, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.evaluation.perplexity import perplexity

VOCABULARY = 50


class FakeEngine:
    """Gives token t the log-probability -t / 10 wherever it stands, so that every sum can be told by hand.

    `answer` replaces that: [T] tokens -> [T-1] log-probabilities.
    """

    def __init__(self, longest: int = 64, answer: Callable[[Sequence[int]], Any] | None = None) -> None:
        self.answer = answer
        self.config = SimpleNamespace(max_position_embeddings=longest, vocab_size=VOCABULARY)
        self.asked: list[list[int]] = []

    def score(self, token_ids: Sequence[int], /) -> NDArray[np.float32]:
        self.asked.append(list(token_ids))
        if self.answer is not None:
            return np.asarray(self.answer(token_ids), dtype=np.float32)
        return np.asarray([-token / 10 for token in token_ids[1:]], dtype=np.float32)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    engine = FakeEngine(answer=lambda ids: [-math.log(VOCABULARY)] * (len(ids) - 1))
    result = perplexity(engine, [1] * 33, context=8)
    assert result.perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert result.nll == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert result.bits_per_token == pytest.approx(math.log2(VOCABULARY), rel=1e-6)


def test_all_scores_every_token_but_the_first_of_each_window_and_counts_the_short_last_window() -> None:
    engine = FakeEngine()
    result = perplexity(engine, list(range(11)), context=4)
    assert engine.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    scored = [1, 2, 3, 5, 6, 7, 9, 10]
    assert result.tokens == len(scored)
    assert result.windows == 3
    assert result.nll == pytest.approx(sum(scored) / 10 / len(scored), rel=1e-6)


def test_a_last_window_of_one_token_has_nothing_to_score() -> None:
    engine = FakeEngine()
    assert perplexity(engine, list(range(9)), context=4).tokens == 6
    assert engine.asked == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_second_half_scores_the_tokens_that_llama_cpp_scores() -> None:
    """Its loop reads the logits at positions context/2 to context-2; each predicts the token after it."""
    engine = FakeEngine()
    result = perplexity(engine, list(range(30)), context=8, scored="second-half")
    scored = [start + position + 1 for start in (0, 8, 16) for position in range(4, 7)]
    assert engine.asked == [list(range(start, start + 8)) for start in (0, 8, 16)]  # 24..29 is no full window
    assert result.tokens == len(scored) == 9
    assert result.nll == pytest.approx(sum(scored) / 10 / len(scored), rel=1e-6)


def test_chunks_limits_the_windows() -> None:
    engine = FakeEngine()
    result = perplexity(engine, list(range(40)), context=8, chunks=2)
    assert engine.asked == [list(range(8)), list(range(8, 16))]
    assert result.windows == 2


def test_the_bos_token_takes_the_first_place_of_every_window_and_no_score_is_lost() -> None:
    engine = FakeEngine()
    plain = perplexity(FakeEngine(), list(range(1, 17)), context=8)
    result = perplexity(engine, list(range(1, 17)), context=8, bos_token_id=0)
    assert [window[0] for window in engine.asked] == [0, 0]
    assert (result.tokens, result.nll) == (plain.tokens, plain.nll)


def test_the_sum_is_kept_in_float64() -> None:
    values = np.random.default_rng(1).uniform(0.5, 8, 300_000).astype(np.float32)
    engine = FakeEngine(longest=len(values) + 1, answer=lambda ids: -values)
    exact = math.fsum(values.tolist()) / len(values)
    assert perplexity(engine, [0] * (len(values) + 1), context=len(values) + 1).nll == pytest.approx(
        exact, rel=1e-13
    )
    assert float(values.sum()) / len(values) != pytest.approx(exact, rel=1e-13), "float32 would have done"


def test_progress_runs_from_nothing_to_all_windows() -> None:
    seen: list[tuple[str, int, int]] = []
    perplexity(FakeEngine(), list(range(12)), context=4, progress=lambda *step: seen.append(step))
    assert seen == [("perplexity", done, 3) for done in range(4)]


def test_numpy_ids_are_as_good_as_a_list() -> None:
    ids = np.arange(20, dtype=np.int32)
    assert (
        perplexity(FakeEngine(), ids, context=8).nll == perplexity(FakeEngine(), ids.tolist(), context=8).nll
    )


def test_the_result_goes_to_json_with_every_number_that_explains_it() -> None:
    result = perplexity(FakeEngine(), list(range(12)), context=4)
    assert set(result.to_json()) == {"perplexity", "tokens", "seconds", "nll", "windows", "context", "scored"}
    assert result.seconds >= 0


@pytest.mark.parametrize(
    ("ids", "options", "complaint"),
    [
        ([], {}, "no tokens"),
        ([3], {}, "nothing to predict"),
        ([1, 2, 3], {"context": 65}, "65 tokens are more than this model's 64"),
        ([1, 2, 3], {"context": 1}, "too short"),
        ([1, 2, 3], {"context": 3, "scored": "second-half"}, "too short"),
        ([1, 2, 3], {"context": 8, "scored": "second-half"}, "3 tokens do not fill a window of 8"),
        ([1, 2, 3], {"context": 8, "chunks": 0}, "chunks"),
        ([1, 2, 3], {"context": 8, "scored": "both"}, "unknown protocol 'both'"),
        ([1, VOCABULARY], {"context": 8}, f"token {VOCABULARY} is outside"),
        ([-1, 2], {"context": 8}, "token -1 is outside"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_asked(
    ids: list[int], options: dict[str, object], complaint: str
) -> None:
    engine = FakeEngine()
    with pytest.raises(PomonaError, match=complaint):
        perplexity(engine, ids, **({"context": 8} | options))  # type: ignore[arg-type]
    assert engine.asked == []


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_probability_that_is_no_number_is_an_error_not_a_perplexity(bad: float) -> None:
    engine = FakeEngine(answer=lambda ids: [-1.0] * (len(ids) - 2) + [bad])
    with pytest.raises(PomonaError, match="window 1 of 2"):
        perplexity(engine, list(range(16)), context=8)
