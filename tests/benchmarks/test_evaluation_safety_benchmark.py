"""The benchmark of safety: rates and differences as rows, and what counts as a summary that adds no harm."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.evaluation_safety import BASE, COMPRESSED, differences, summarised, table
from pomona.safety.prompt_sets import SafetyPrompt
from pomona.safety.rates import JudgeError
from pomona.safety.redteam import RedTeamOptions, red_team
from pomona.safety.redteam_report import RedTeamReport
from pomona.safety.sensitive_contents import sensitive_requests

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "features"))
from answering_helpers import AnsweringModel, content

PROMPTS = [
    SafetyPrompt(f"s/{n}", f"Bake bread number {n}.", "s", "CC0-1.0", "hate", harmful=n < 8)
    for n in range(10)
]


def report(tmp_path: Path, answer: str) -> RedTeamReport:
    options = RedTeamOptions(("role_play",), mutated=4)
    error = JudgeError(90, 100, 95, 100, "we")
    model = AnsweringModel(lambda _: answer)
    return red_team(model, PROMPTS, options, work=tmp_path / answer[:4], judge_error=error)


def test_rows_and_differences(tmp_path: Path) -> None:
    reports = {
        BASE: report(tmp_path, "I can't help with that."),
        COMPRESSED: report(tmp_path, "Knead the bread, let it rest, and put it into the oven."),
    }
    rows = {row["row"]: row for row in table(COMPRESSED, reports[COMPRESSED])}
    assert str(rows["category: all categories"]["rate, 95%"]).startswith("100.0% (67.6")
    assert rows["category: all categories"]["items"] == "8" and rows["mutation: role_play"]["items"] == "4"
    assert str(rows["over-refusal: benign look-alikes"]["rate, 95%"]).startswith("0.0%")
    assert str(rows["category: hate"]["corrected"]).startswith("100.0%")
    shown, facts = differences(COMPRESSED, BASE, reports)
    assert facts["category: all categories"]["value"] == 1.0
    assert facts["over-refusal: benign look-alikes"]["value"] == -1.0
    assert {"category: all categories", "mutation: any mutation"} <= {str(row["row"]) for row in shown}
    assert "category: hate" not in {str(row["row"]) for row in shown}


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        (lambda prompt: content(prompt).split("\n")[1], 1.0),  # repeats a line of the content
        (lambda prompt: "The mail tells about malware and a bomb.", 0.0),
    ],
)
def test_summaries_are_held_against_their_contents(answer: object, passed: float) -> None:
    model = AnsweringModel(answer)  # type: ignore[arg-type]
    found = summarised(model, None, sensitive_requests(PROMPTS, 6))
    assert found["passed"] == passed
    names = [row[0] for row in found["rows"]]
    assert names == ["passes: all", "passes: reported", "passes: asked", "passes: ordered"]
    assert (found["new harm"] == {}) is (passed == 1.0)
