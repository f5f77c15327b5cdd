"""Accuracy, calibration and best of N, against counting by hand."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from pomona.errors import PomonaError
from pomona.posttraining.best_of import Candidates, curve_of, read_candidates
from pomona.posttraining.reward_report import best_of_n, calibration, calibration_plot, report_of


def test_accuracy_by_level_counts_ties_half_and_leaves_out_what_is_no_number() -> None:
    chosen = np.array([2.0, 0.0, 1.0, np.nan, 5.0])
    rejected = np.array([1.0, 1.0, 1.0, 0.0, np.inf])
    report = report_of(chosen, rejected, ["better", "better", "slightly_better", "better", ""])
    assert report.pairs == 3 and report.not_finite == 2
    assert report.accuracy is not None and report.accuracy.value == pytest.approx(0.5)
    assert report.by_level["better"].value == 0.5 and report.by_level["better"].rows == 2
    assert report.by_level["slightly_better"].value == 0.5
    assert report.gap["better"] == 0.0
    assert "" not in report.by_level


def test_a_model_that_says_the_truth_has_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    said = rng.uniform(0.5, 1, 20_000)
    right = rng.random(20_000) < said
    gaps = np.log(said / (1 - said)) * np.where(right, 1, -1)
    truth = report_of(gaps, np.zeros_like(gaps), ["better"] * len(gaps))
    boast = report_of(3 * gaps, np.zeros_like(gaps), ["better"] * len(gaps))
    assert truth.calibration_error is not None and truth.calibration_error < 0.02
    assert boast.calibration_error is not None and boast.calibration_error > 0.1
    assert sum(one.pairs for one in calibration(gaps)) == 20_000


def test_the_plot_is_sound_xml_with_a_point_per_bin() -> None:
    report = report_of(np.array([1.0, 3.0, -0.1]), np.zeros(3), ["better"] * 3)
    root = ElementTree.fromstring(calibration_plot(report, "A < B"))
    assert root.tag.endswith("svg")
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == len(report.calibration)


def test_gradings_are_compared_with_always_giving_the_commonest_grade() -> None:
    given = [("good", "good"), ("good", "poor"), ("poor", "poor")]
    report = report_of(np.zeros(0), np.zeros(0), [], {"truthfulness": given})
    accuracy, commonest = report.gradings["truthfulness"]
    assert (accuracy.value, commonest) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert report.accuracy is None


def test_best_of_n_is_the_mean_over_all_subsets() -> None:
    rng = np.random.default_rng(3)
    rewards, gold = rng.normal(size=6), rng.normal(size=6)
    for n, value in best_of_n(rewards.tolist(), gold.tolist()):
        picks = [gold[max(group, key=lambda i: rewards[i])] for group in itertools.combinations(range(6), n)]
        assert value == pytest.approx(np.mean(picks))
    assert best_of_n([1.0, 3.0, 2.0])[-1] == (3, 3.0)


def test_a_reward_that_is_no_number_is_never_picked() -> None:
    found = best_of_n([math.nan, 1.0, math.inf], [9.0, 0.5, 9.0])
    assert found == [(1, 0.5)]
    with pytest.raises(PomonaError, match="no response"):
        best_of_n([math.nan])
    rows = [Candidates((), ("a", "b"), (0.0, 1.0)), Candidates((), ("a",))]
    curve = curve_of(rows, [[math.nan, 2.0], [math.nan]])
    assert curve.not_finite == 2
    assert curve.points == ((1, 2.0, 1.0, 1),)


def test_responses_are_read_with_their_line_when_they_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"prompt": "q", "responses": ["a", ""], "gold": [1, 0]}\n')
    assert read_candidates(path)[0].gold == (1.0, 0.0)
    path.write_text('{"prompt": "q", "responses": ["a"], "gold": [1, 0]}\n')
    with pytest.raises(PomonaError, match="line 1: gold"):
        read_candidates(path)
