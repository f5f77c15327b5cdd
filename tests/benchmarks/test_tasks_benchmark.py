"""The benchmark of the task adapters: prompts for models without them, the choice of rows, the goals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.tasks import TASKS, Systems, spread, training_rows
from benchmarks.tasks_prompts import LONGEST_SHOWN, SHOWN, prompts
from pomona.adapters.metrics import bootstrap
from pomona.adapters.recipes.summarize import contents_with_orders
from pomona.adapters.tasks.registry import get
from pomona.evaluation.tasks import TaskReport
from pomona.runtime.transcript import Prompt, Response


@pytest.mark.parametrize("name", TASKS)
def test_every_prompt_asks_about_the_same_content_for_the_same_form(name: str) -> None:
    pool = training_rows(name)
    request = replace(pool[0].request, content="Zebras arrive at seven.")
    for way, task in prompts(name, pool).items():
        entries = task.entries(request)
        assert isinstance(entries[-1], Prompt) and "Zebras arrive at seven." in entries[-1].text, way
        assert "{" not in entries[-1].text.replace(request.content, "") or name == "extract"
        assert task.form(request) == get(name).form(request)
        assert task.metrics == get(name).metrics


@pytest.mark.parametrize("name", TASKS)
def test_worked_examples_are_short_and_of_the_same_style(name: str) -> None:
    pool = training_rows(name)
    task = prompts(name, pool)[f"{SHOWN} worked examples"]
    request = next(one.request for one in pool if one.request.style == pool[0].request.style)
    entries = task.entries(request)
    answers = [one.text for one in entries if isinstance(one, Response)]
    assert len(answers) == SHOWN
    by_answer = {one.answer: one.request for one in pool}
    for answer in answers:
        assert by_answer[answer].style == request.style
        assert len(by_answer[answer].content) <= LONGEST_SHOWN


def test_rows_are_taken_evenly_and_never_twice() -> None:
    [example] = training_rows("proofread")[:1]
    rows = [replace(example, answer=str(i)) for i in range(10)]
    assert [one.answer for one in spread(rows, 5)] == ["0", "2", "4", "6", "8"]
    assert len(spread(rows, 99)) == 10


def test_a_margin_is_met_only_if_the_whole_interval_is_above_zero() -> None:
    metric = get("summarize").metrics[1]  # a mean

    def report(values: list[float]) -> TaskReport:
        counts = [(value, 1.0) for value in values]
        others = {one.name: [None] * len(values) for one in get("summarize").metrics}
        scores = {metric.name: bootstrap(metric, counts)}
        return TaskReport(
            "summarize", None, len(values), 0, scores, 0.0, 0, (), {**others, metric.name: counts}
        )

    found = Systems("summarize")
    found.margin("a base far below", report([1.0] * 20), report([0.0] * 20))
    found.margin("a base at level", report([1.0, 0.0] * 10), report([0.0, 1.0] * 10))
    assert [goal.met for goal in found.goals] == [True, False]


def test_contents_with_orders_ask_for_a_word_and_are_held_out() -> None:
    found = contents_with_orders(100)
    assert len(found) == 100
    for example in found:
        assert example.reference["word"] in example.request.content
        assert example.reference["word"] not in example.answer.casefold()
    seen = {one.request.content for one in training_rows("summarize")}
    assert not seen & {one.request.content for one in found}
