"""Evaluation of tasks with a model that answers by rote: the scores are those of its answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "features"))
from answering_helpers import AnsweringModel, content

from pomona.adapters.recipes.rows import RecipeOptions, rows
from pomona.adapters.tasks.registry import get
from pomona.adapters.tasks.task import Example, Request
from pomona.adapters.tasks.tools import tool_of
from pomona.errors import PomonaError
from pomona.evaluation.tasks import compare, evaluate_task, held_out_examples

EXAMPLES = [
    Example(
        Request(f"He go to town {n} and she have a dog."),
        f"He goes to town {n} and she has a dog.",
        "t",
        "MIT",
    )
    for n in range(8)
]


def corrected(prompt: str) -> str:
    return content(prompt).replace("go ", "goes ").replace("have", "has")


def test_a_perfect_model_scores_one_and_a_lazy_one_zero() -> None:
    perfect = evaluate_task(AnsweringModel(corrected), "proofread", EXAMPLES)
    lazy = evaluate_task(AnsweringModel(content), "proofread", EXAMPLES)
    assert perfect.main.value == 1.0 and perfect.scores["gleu"].value == pytest.approx(1.0)
    assert lazy.main.value == 0.0 and lazy.scores["gleu"].value < 0.7
    assert "clean_kept" not in perfect.scores, "no row is about it"
    assert perfect.rows == 8 and perfect.new_tokens == 32
    better = compare(perfect, lazy)
    assert better["f0.5"].value == 1.0 and better["gleu"].low > 0


def test_unusable_answers_count_as_wrong() -> None:
    model = AnsweringModel(lambda p: PomonaError("no room") if "town 3" in p else corrected(p))
    report = evaluate_task(model, "proofread", EXAMPLES)
    assert report.unusable == 1 and report.answers[3] is None
    assert 0.9 < report.main.value < 1.0


def test_a_broken_answer_is_unusable() -> None:
    example = Example(Request("a"), '{"points":["one"]}', "t", "MIT")
    report = evaluate_task(AnsweringModel(lambda _: '{"points":'), "key_points", [example, example])
    assert report.unusable == 2 and report.main.value == 0.0


def test_rows_of_a_recipe_can_be_evaluated() -> None:
    task = get("prioritize")
    lines = list(rows(task, RecipeOptions(rows=10)))
    right = {task.example(row).request.content: row["messages"][-1]["content"] for row in lines}
    report = evaluate_task(AnsweringModel(lambda p: right[content(p)]), task, lines)
    assert report.scores["accuracy"].value == 1.0 and report.adapter is None


def test_the_limit_takes_rows_from_the_whole_set() -> None:
    model = AnsweringModel(corrected)
    report = evaluate_task(model, "proofread", EXAMPLES, limit=4)
    assert report.rows == 4 and sorted(content(p)[14] for p in model.prompts) == ["0", "2", "4", "6"]


def test_the_adapter_is_asked_for_and_told() -> None:
    model = AnsweringModel(corrected)
    report = evaluate_task(model, "proofread", EXAMPLES, adapter="mine")
    assert report.adapter == "mine" and {g.adapter for g in model.generations} == {"mine"}
    json.dumps(report.to_json())
    assert report.to_json()["scores"]["f0.5"]["value"] == 1.0


def test_calls_are_judged() -> None:
    tool = tool_of({"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}})
    cases = [Example(Request(f"q{n}", tools=(tool,)), "", "t", "MIT", [{"f": {"x": [n]}}]) for n in range(2)]
    answers: dict[str, Any] = {"q0": [("f", {"x": 0})], "q1": "The answer is 1."}
    model = AnsweringModel(lambda prompt: answers[prompt])
    report = evaluate_task(model, "tools", cases)
    assert report.scores["ast_accuracy"].value == 0.5
    assert model.generations[0].tool_choice == "auto"
    evaluate_task(AnsweringModel(lambda _: [("f", {"x": 0})]), "tools", cases, tool_choice="required")


def test_injections_that_are_obeyed_are_counted() -> None:
    examples = [
        Example(Request("A mail.", "one line", "e-mail"), "A mail.", "t", "MIT", {"word": "zorbla"}),
        Example(Request("Another.", "one line", "e-mail"), "Another.", "t", "MIT", {"word": "vexmup"}),
        Example(Request("Third.", "one line", "e-mail"), "Third.", "t", "MIT"),
    ]
    report = evaluate_task(
        AnsweringModel(lambda p: "ZORBLA!" if "A mail" in p else "Fine."), "summarize", examples
    )
    assert report.scores["resists_injection"].rows == 2
    assert report.scores["resists_injection"].value == 0.5


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(PomonaError, match="no rows"):
        evaluate_task(AnsweringModel(corrected), "proofread", [])
    one = evaluate_task(AnsweringModel(corrected), "proofread", EXAMPLES)
    other = evaluate_task(AnsweringModel(corrected), "proofread", EXAMPLES[:2])
    with pytest.raises(PomonaError, match="other rows"):
        compare(one, other)


def test_held_out_sets_need_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("POMONA_DATA", raising=False)
    with pytest.raises(PomonaError, match="POMONA_DATA is not set"):
        held_out_examples("proofread")
    assert len(held_out_examples("prioritize", tmp_path)) == 200
    with pytest.raises(PomonaError, match="cannot be read"):
        held_out_examples("proofread", tmp_path)
