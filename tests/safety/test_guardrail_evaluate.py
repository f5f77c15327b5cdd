"""AUROC, recall and intervals against other people's arithmetic, and an evaluation from end to end."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from guarded_model import WordGuardrail, guarded_model, small_data

from pomona.errors import PomonaError
from pomona.runtime.model import Model
from pomona.safety.guardrail_data import HELD_OUT, evaluation_sets, lines, training_rows
from pomona.safety.guardrail_evaluate import auroc, evaluate, intervals, recall_at


def test_auroc_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with pomona[train]")
    rng = np.random.default_rng(0)
    for digits in (1, 8):  # with many ties, and with none
        bad = np.round(rng.normal(1, 1, 83), digits)
        good = np.round(rng.normal(0, 1, 140), digits)
        labels = [1] * len(bad) + [0] * len(good)
        assert auroc(bad, good) == pytest.approx(metrics.roc_auc_score(labels, [*bad, *good]))


def test_recall_keeps_its_promise_on_false_positives() -> None:
    good = np.arange(100) / 100
    assert recall_at(np.array([0.93, 0.94, 0.941, 0.99]), good) == 0.5
    assert recall_at(np.array([0.995]), good, 0.0) == 1.0
    assert recall_at(np.full(5, 0.5), np.full(100, 0.5)) == 0.0  # who says the same of all finds nobody


def test_an_interval_holds_the_true_value_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [intervals(rng.normal(1, 1, 60), rng.normal(0, 1, 60), auroc) for _ in range(25)]
    assert all(one.low < one.value < one.high for one in found)
    # The AUROC of two normal distributions that lie one deviation apart is 0.7602.
    assert sum(one.low < 0.7602 < one.high for one in found) >= 20
    assert np.mean([one.high - one.low for one in found]) < 0.25
    with pytest.raises(PomonaError, match="no texts of one kind"):
        intervals(np.array([]), np.array([1.0]), auroc)


def test_nothing_that_is_judged_was_learnt(tmp_path: Path) -> None:
    data = small_data(tmp_path)
    rows = training_rows(data)
    learnt = {row.text for row in rows}
    assert {row.side for row in rows} == {"input", "output"}
    assert {row.harmful for row in rows} == {True, False}
    assert not {row.category for row in rows} & set(HELD_OUT)
    assert not {row.source for row in rows} & {"xstest", "mt_bench"}
    sets = {one.name: one for one in evaluation_sets(data)}
    for one in sets.values():
        assert one.harmful and one.harmless
        assert not {text.text for text in (*one.harmful, *one.harmless)} & learnt
        assert all(text.harmful for text in one.harmful) and not any(t.harmful for t in one.harmless)
    assert {text.category for text in sets["held-out categories"].harmful} <= set(HELD_OUT)


def test_every_category_can_be_held_out(tmp_path: Path) -> None:
    rows = training_rows(small_data(tmp_path), held_out=("illegal",))
    assert "illegal" not in {row.category for row in rows}


def test_a_guardrail_that_goes_by_words_is_measured_as_it_is(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data")
    (tmp_path / "model").mkdir()
    with Model.load(str(guarded_model(tmp_path / "model")), threads=1) as model:
        guardrail = WordGuardrail(model, ("hack", "steal", "cheat"))
        results = {one.name: one for one in evaluate(guardrail, data)}
    for name in ("held-out categories", "held-out source", "look-alikes"):
        assert results[name].auroc.value == 1.0 and results[name].recall.value == 1.0
        assert results[name].over_refused is not None and results[name].over_refused.value == 0.0
    raw = results["look-alikes"].to_json()
    assert raw["auroc"]["value"] == 1.0 and raw["side"] == "input"


def test_our_own_texts_are_no_test_texts() -> None:
    harmless = lines("harmless")
    assert len(harmless) > 120 and len(set(harmless)) == len(harmless)
    assert len(lines("refusals")) > 10


@pytest.mark.data
def test_no_look_alike_of_ours_is_one_of_xstest() -> None:
    from pomona.data.ngrams import plain_words
    from pomona.data.public_sets import data_folder
    from pomona.safety.prompt_sets import read_set

    def grams(text: str) -> set[tuple[str, ...]]:
        found = plain_words(text)
        return {tuple(found[i : i + 5]) for i in range(len(found) - 4)}

    theirs = [grams(prompt.text) for prompt in read_set("xstest", data_folder())]
    assert len(theirs) == 450
    for line in lines("harmless"):
        assert all(len(grams(line) & other) <= 1 for other in theirs), line
