"""What gradings say, worked out by hand and against SciPy; and rows that the reward model's reader takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from pomona.errors import PomonaError
from pomona.evaluation.graded_items import read_items
from pomona.evaluation.side_by_side import (
    DIMENSIONS,
    GradedItem,
    PairGrading,
    SummaryGrading,
    pair_report,
    preferences,
    summary_report,
)
from pomona.posttraining.preferences import QUESTIONS, read_preferences, write_preferences


def graded(item: str, grader: str, verdict: Any, **more: Any) -> PairGrading:
    level = None if verdict == "tie" else "better"
    return PairGrading(item, grader, verdict, **{"level": level, **more})


def item(name: str, a: str = "yes", b: str = "no") -> GradedItem:
    return GradedItem(name, ({"role": "user", "content": f"Is {name} so?"},), f"{a} {name}", f"{b} {name}")


def test_an_item_counts_once_with_what_most_say() -> None:
    report = pair_report(
        [
            *(graded("1", grader, "a") for grader in "xyz"),
            graded("2", "x", "a"),
            graded("2", "y", "a"),
            graded("2", "z", "b"),
            graded("3", "x", "a"),
            graded("3", "y", "b"),
            graded("4", "x", "tie"),
            graded("5", "x", "b"),
        ]
    )
    assert (report.items, report.gradings) == (5, 10)
    assert (report.wins.count, report.ties.count, report.losses.count) == (2, 2, 1)
    assert (report.decided.count, report.decided.of) == (2, 3)
    assert report.win_rate.value == pytest.approx((1 + 2 / 3 + 0.5 + 0.5 + 0) / 5)
    assert report.p == pytest.approx(stats.binomtest(2, 3).pvalue)
    theirs = stats.binomtest(2, 5).proportion_ci(method="wilson")
    assert (report.wins.low, report.wins.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert report.agreement["preference"].units == 3  # graded twice or more


def test_strength_is_a_scale_from_one_side_to_the_other() -> None:
    strengths = [
        graded("1", "x", "a", level="significantly_better").strength,
        graded("1", "x", "a", level="negligibly_better").strength,
        graded("1", "x", "tie").strength,
        graded("1", "x", "b", level="slightly_better").strength,
        graded("1", "x", "b", level=None).strength,
    ]
    assert strengths == [4, 1, 0, -2, None]
    near = [
        graded(str(i), g, "a", level="better" if g == "x" else "slightly_better")
        for i in range(4)
        for g in "xy"
    ]
    far = [graded(str(i), g, "a" if g == "x" else "b") for i in range(4) for g in "xy"]
    mixed = [graded("9", "x", "b"), graded("9", "y", "b")]
    ours = pair_report([*near, *mixed]).agreement["strength"].value
    assert ours > pair_report([*far, *mixed]).agreement["strength"].value


def test_grades_of_each_side_and_the_habits_of_graders() -> None:
    report = pair_report(
        [
            graded("1", "x", "a", a={"truthfulness": "good"}, b={"truthfulness": "poor"}, left="a"),
            graded("1", "y", "a", a={"truthfulness": "good"}, b={"truthfulness": "fair"}, left="b"),
            graded("2", "x", "b", a={"truthfulness": "fair", "conciseness": "good"}, left="b"),
        ]
    )
    assert report.grades["truthfulness"]["a"] == {"poor": 0, "fair": 1, "good": 2}
    assert report.better["truthfulness"].value == pytest.approx(
        0.75
    )  # of item 1, where both sides were graded
    assert "conciseness" not in report.better
    # Both sides of item 1 have two grades; A of item 2 has one, which says nothing about agreement.
    assert report.agreement["truthfulness"].units == 2
    habits = {one.grader: (one.left_preferred.count, one.left_preferred.of) for one in report.graders}
    assert habits == {"x": (2, 2), "y": (0, 1)}
    json.dumps(report.to_json(), allow_nan=False)


def test_a_summary_is_good_if_all_is_and_poor_if_anything_is() -> None:
    def summary(name: str, grader: str, system: str, **grades: Any) -> SummaryGrading:
        return SummaryGrading(name, grader, system, {one: grades.get(one, "good") for one in DIMENSIONS})

    rows = [
        summary("1", "x", "4 bits"),
        summary("2", "x", "4 bits", composition="neutral"),
        summary("2", "y", "4 bits", composition="good"),  # two differ: the lower grade counts
        summary("3", "x", "4 bits", composition="neutral", harmfulness="poor"),
        summary("4", "x", "16 bits"),
    ]
    assert [row.overall for row in rows] == ["good", "neutral", "good", "poor", "good"]
    report = summary_report(rows)
    overall = report.systems["4 bits"]["overall"]
    assert {grade: (share.count, share.of) for grade, share in overall.items()} == {
        "good": (1, 3), "neutral": (1, 3), "poor": (1, 3),
    }  # fmt: skip
    assert report.systems["16 bits"]["overall"]["good"].value == 1.0
    assert report.systems["4 bits"]["groundedness"]["good"].count == 3
    assert set(report.agreement) == {"overall", *DIMENSIONS}
    json.dumps(report.to_json(), allow_nan=False)


def test_nothing_graded_says_so() -> None:
    for make in (pair_report, summary_report):
        with pytest.raises(PomonaError, match="nothing is graded"):
            make([])


def test_rows_for_the_reward_model_are_read_without_a_complaint(tmp_path: Path) -> None:
    all_good: Any = dict.fromkeys(QUESTIONS, "good")
    rows = preferences(
        [item(str(number)) for number in range(1, 6)],
        [
            graded("1", "x", "a", level="significantly_better", a=all_good, b={"truthfulness": "poor"}),
            graded("1", "y", "a", level="slightly_better", a={**all_good, "conciseness": "fair"}),
            graded("1", "z", "b", level="negligibly_better"),
            graded("2", "x", "b"),
            graded("3", "x", "tie", a={"harmlessness": "good"}),
            graded("4", "x", "tie"),
        ],
    )
    write_preferences(tmp_path / "p.jsonl", rows)
    read, report = read_preferences(tmp_path / "p.jsonl", contradictions="refuse")
    assert report.problems == [] and len(read) == 3
    first, second, third = read
    assert (first.chosen.text, first.level) == ("yes 1", "slightly_better")  # the weaker of two
    assert first.chosen.gradings == {**all_good, "conciseness": "fair"}  # and the lower one
    assert first.rejected is not None and first.rejected.gradings == {"truthfulness": "poor"}
    assert (second.chosen.text, second.level) == ("no 2", "better")
    assert third.rejected is None and third.chosen.gradings == {"harmlessness": "good"}


@pytest.mark.slow
def test_the_reward_model_learns_from_what_people_said(tmp_path: Path) -> None:
    """`pomona align reward` on an export: people like "yes", call it true, and it learns so."""
    from pomona.posttraining.options import RewardOptions
    from pomona.posttraining.reward import train_reward
    from tests.adapters.adapt_samples import tiny_model
    from tests.posttraining.conftest import QUICK

    gradings = [
        graded(str(number), grader, "a", a={"truthfulness": "good"}, b={"truthfulness": "poor"})
        for number in range(40)
        for grader in "xy"
    ]
    write_preferences(
        tmp_path / "p.jsonl", preferences([item(str(number)) for number in range(40)], gradings)
    )
    rows, report = read_preferences(tmp_path / "p.jsonl")
    result = train_reward(
        tiny_model(tmp_path / "tiny"),
        rows,
        tmp_path / "model",
        work=tmp_path / "work",
        data=report,
        options=RewardOptions(**{**QUICK, "epochs": 4, "validation": 0.25}),
        threads=1,
    )
    held_out = result.held_out
    assert held_out is not None and held_out.accuracy is not None and held_out.accuracy.value > 0.9
    assert held_out.gradings["truthfulness"][0].value > held_out.gradings["truthfulness"][1]


def test_two_answers_that_are_the_same_are_one_response() -> None:
    same = GradedItem("1", ({"role": "user", "content": "q"},), "x", "x")
    grades: Any = {"a": {"truthfulness": "good"}, "b": {"truthfulness": "fair"}}
    [row] = preferences([same], [graded("1", "x", "a", **grades)])
    assert row.rejected is None and row.chosen.gradings == {"truthfulness": "fair"}
    assert preferences([same], [graded("1", "x", "a")]) == []


# --- what is imported


def test_pairs_and_summaries_are_read() -> None:
    text = "\ufeff" + "\n".join(
        [
            json.dumps({"id": 7, "prompt": "Why?", "a": "x", "b": "y", "source": "s"}),
            "",
            json.dumps({"prompt": [{"role": "user", "content": "Why?"}], "a": "x", "b": "x\u2028z"}),
        ]
    )
    first, second = read_items(text, "pairs", first=10)
    assert (first.key, first.prompt, first.a, first.b, first.source) == (
        "7", ({"role": "user", "content": "Why?"},), "x", "y", "s",
    )  # fmt: skip
    assert (second.key, second.b) == ("12", "x\u2028z")
    [summary] = read_items('{"prompt": "mail", "response": "short", "system": "m"}', "summaries")
    assert (summary.a, summary.b, summary.system, summary.key) == ("short", None, "m", "1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "a": "y"}, "b is no text"),
        ({"prompt": "x", "a": "y", "b": " "}, "b is no text"),
        ({"prompt": "x", "a": "y", "b": "z", "winner": "a"}, "'winner' is no key"),
        ({"prompt": [], "a": "y", "b": "z"}, "does not end with the user"),
        (
            {"prompt": [{"role": "assistant", "content": "x"}], "a": "y", "b": "z"},
            "does not end with the user",
        ),
        ({"prompt": "x", "a": "y", "b": "z" * 200_000}, "characters"),
        ({"prompt": "x", "a": "y", "b": "z", "id": ["x"]}, "id is no short text"),
        ({"prompt": "x", "a": "y\ud800", "b": "z"}, "surrogate"),
        ([1], "JSON"),
    ],
)
def test_a_bad_row_refuses_all_by_its_line(row: Any, message: str) -> None:
    good = json.dumps({"prompt": "x", "a": "y", "b": "z"})
    with pytest.raises(PomonaError, match=f"line 2: .*{message}"):
        read_items(f"{good}\n{json.dumps(row)}\n", "pairs")
    with pytest.raises(PomonaError, match="no line"):
        read_items(" \n", "pairs")
