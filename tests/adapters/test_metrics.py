"""Metrics against values computed by hand or by brute force; intervals against what they promise."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.adapters.metrics import (
    F_HALF,
    GLEU,
    bootstrap,
    edit_counts,
    f_beta,
    field_counts,
    flat,
    gleu,
    gleu_counts,
    mean,
    paired_bootstrap,
    rouge_l,
)
from pomona.adapters.tasks.task import Example, Request
from pomona.errors import PomonaError


def example(content: str, answer: str) -> Example:
    return Example(Request(content), answer, "here", "MIT")


def test_edit_counts_by_hand() -> None:
    source = "I has a apple and a orange ."
    right = "I have an apple and an orange ."
    assert edit_counts(source, right, right) == (3, 3, 3)
    assert edit_counts(source, source, right) == (0, 0, 3)
    assert edit_counts(source, "I have a apple and an pear .", right) == (2, 3, 3)


def test_f_half_weighs_precision_twice_as_recall() -> None:
    # By hand: P = 2/3, R = 2/4; (1 + 0.25) P R / (0.25 P + R) = 0.4167 / 0.6667
    assert f_beta(np.array([2.0, 3.0, 4.0]), 0.5) == pytest.approx(0.625)
    assert f_beta(np.array([0.0, 0.0, 0.0]), 0.5) == 1.0, "nothing to do, nothing done"
    assert f_beta(np.array([0.0, 2.0, 0.0]), 0.5) == 0.0
    assert f_beta(np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]), 0.5).tolist() == [1.0, 0.0]


def test_the_corpus_value_pools_the_edits() -> None:
    rows = [F_HALF.counts("I have it", example("I has it", "I have it"))]
    rows.append(F_HALF.counts("he go", example("he go", "he goes")))
    assert F_HALF.combine(np.sum(rows, axis=0)) == pytest.approx(1.25 * 1 * 0.5 / (0.25 + 0.5))


def test_gleu_of_a_perfect_correction_is_one_and_of_nothing_zero() -> None:
    counts = gleu_counts("I has a apple .", "I have an apple .", "I have an apple .")
    assert gleu(np.array(counts)) == pytest.approx(1.0)
    assert gleu(np.array(gleu_counts("a b", "", "a c"))) == 0.0


def test_gleu_by_hand() -> None:
    # source a b c d e, answer a b c d e (nothing corrected), reference a b x d e.
    # 1-grams: kept a b d e = 4, missed c = 1 -> 3 of 5; 2-grams: kept ab de = 2, missed bc cd = 2 -> 0 of 4
    counts = gleu_counts("a b c d e", "a b c d e", "a b x d e")
    assert counts == (3, 5, 0, 4, 0, 3, 0, 2, 5, 5)
    assert gleu(np.array(counts)) == 0.0
    # answer a b x d f: 1-grams a b x d = 4, missed 0 -> 4/5; 2: ab bx xd = 3/4; 3: abx bxd = 2/3; 4: abxd =
    # 1/2
    counts = gleu_counts("a b c d e", "a b x d f", "a b x d e")
    assert counts == (4, 5, 3, 4, 2, 3, 1, 2, 5, 5)
    assert gleu(np.array(counts)) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_gleu_punishes_a_short_answer() -> None:
    counts = gleu_counts("a b c d e f", "a b c d", "a b c d e f")
    assert gleu(np.array(counts)) == pytest.approx(math.exp(1 - 6 / 4))


def test_gleu_prefers_a_correction_to_none() -> None:
    source = "she go to school with her old friends every days ."
    right = "she goes to school with her old friends every day ."
    values = [
        float(GLEU.combine(np.array(GLEU.counts(answer, example(source, right)))))
        for answer in (right, "she goes to school with her old friends every days .", source)
    ]
    assert values[0] == 1.0 and values == sorted(values, reverse=True) and values[1] > values[2]


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=7)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_rouge_l_by_brute_force(a: list[str], b: list[str]) -> None:
    def subsequences(words: list[str]) -> set[tuple[str, ...]]:
        return {c for n in range(len(words) + 1) for c in itertools.combinations(words, n)}

    longest = max(len(one) for one in subsequences(a) & subsequences(b))
    precision, recall = longest / len(a), longest / len(b)
    expected = 2 * precision * recall / (precision + recall) if longest else 0.0
    assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(expected)


def test_rouge_l_ignores_case_and_punctuation() -> None:
    assert rouge_l("The cat, sat!", "the cat sat") == 1.0
    assert rouge_l("", "x") == 0.0


def test_fields_are_counted_by_path_and_value() -> None:
    right = {"people": [{"name": "Ann", "age": 3}, {"name": "Bob", "age": 4}], "city": ""}
    assert field_counts(right, right) == (4, 4, 4)
    answer = {"people": [{"name": "bob.", "age": 4.0}, {"name": "Ann", "age": 5}], "city": "Oslo"}
    assert field_counts(answer, right) == (3, 5, 4)
    assert flat({"a": True}) != flat({"a": "true"})
    assert field_counts(None, {}) == (0, 0, 0)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = random.Random(0)
    accuracy = mean("accuracy", lambda value, _: value)
    inside = 0
    for trial in range(200):
        rows = [accuracy.counts(float(rng.random() < 0.7), None) for _ in range(80)]
        interval = bootstrap(accuracy, [row for row in rows if row], seed=trial)
        inside += interval.low <= 0.7 <= interval.high
    assert 0.88 <= inside / 200 <= 0.99


def test_a_paired_difference_is_narrower_than_the_values_alone() -> None:
    rng = random.Random(1)
    accuracy = mean("accuracy", lambda value, _: value)
    base = [(float(rng.random() < 0.5), 1.0) for _ in range(200)]
    better = [(min(1.0, hit + float(rng.random() < 0.1)), one) for hit, one in base]
    difference = paired_bootstrap(accuracy, better, base)
    alone = bootstrap(accuracy, better)
    assert difference.low > 0
    assert difference.high - difference.low < alone.high - alone.low
    assert difference.value == pytest.approx(
        sum(a[0] - b[0] for a, b in zip(better, base, strict=True)) / 200
    )


def test_the_same_seed_gives_the_same_interval() -> None:
    accuracy = mean("accuracy", lambda value, _: value)
    rows = [(float(i % 3 == 0), 1.0) for i in range(50)]
    assert bootstrap(accuracy, rows, seed=4) == bootstrap(accuracy, rows, seed=4)
    assert bootstrap(accuracy, rows, seed=4) != bootstrap(accuracy, rows, seed=5)


def test_nothing_to_measure_is_an_error() -> None:
    accuracy = mean("accuracy", lambda value, _: value)
    with pytest.raises(PomonaError, match="no rows"):
        bootstrap(accuracy, [])
    with pytest.raises(PomonaError, match="cannot be paired"):
        paired_bootstrap(accuracy, [(1.0, 1.0)], [(1.0, 1.0), (0.0, 1.0)])
