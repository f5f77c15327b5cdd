"""Recipes on the public data sets: sources, licences, and nothing held out in the training rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pomona.adapters.recipes.proofread import HELD_OUT_CORPUS
from pomona.adapters.recipes.rows import RecipeOptions, RowReport, rows
from pomona.adapters.tasks.registry import get
from pomona.adapters.tasks.tools import calls_of
from pomona.data.public_sets import LICENSES, corpus, sentences

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def folder() -> Path:
    given = os.environ.get("POMONA_DATA")
    if not given:
        pytest.skip(
            "POMONA_DATA is not set: the public data sets lie outside the project (see CONTRIBUTING.md)"
        )
    return Path(given)


def test_proofreading_trains_on_other_sources_than_it_is_judged_on(folder: Path) -> None:
    report = RowReport("proofread")
    made = list(rows(get("proofread"), RecipeOptions(rows=300, data=folder), report))
    assert set(report.sources) == {"pomona", "wiki_demo", "gutenberg_pride"}
    assert set(report.licenses) == {"Apache-2.0", "CC-BY-SA-3.0", "public domain"}
    assert all(row["license"] == LICENSES.get(row["source"], "Apache-2.0") for row in made)
    held_out = get("proofread").held_out(folder)
    assert len(held_out) == 400 and {example.source for example in held_out} == {HELD_OUT_CORPUS}
    trained = {row["messages"][-1]["content"] for row in made}
    assert not trained & {example.answer for example in held_out}
    clean = sum(example.answer == example.request.content for example in held_out) / 400
    assert 0.08 < clean < 0.25
    known = {sentence for run in sentences(corpus(folder, HELD_OUT_CORPUS)) for sentence in run}
    assert held_out[0].answer.split(". ")[0].rstrip(".?!") in {
        one.split(". ")[0].rstrip(".?!") for one in known
    }


def test_tools_train_on_glaive_and_are_judged_on_bfcl(folder: Path) -> None:
    made = list(rows(get("tools"), RecipeOptions(rows=250, data=folder)))
    calls = [calls_of(row["messages"][-1]["content"]) for row in made]
    assert len(made) == 250 and 80 < sum(map(bool, calls)) < 250, "answers in words too"
    for row, found in zip(made, calls, strict=True):
        for call in found:
            assert f'"name": "{call["name"]}"' in row["messages"][0]["content"]
    held_out = get("tools").held_out(folder)
    assert len(held_out) == 300 and {example.source for example in held_out} == {"bfcl"}
    questions = {row["messages"][-2]["content"] for row in made}
    assert not questions & {example.request.content for example in held_out}


def test_the_reference_calls_of_bfcl_are_right_by_our_judge(folder: Path) -> None:
    accuracy = get("tools").metrics[0]
    right = 0
    examples = get("tools").held_out(folder)
    for example in examples:
        calls = []
        for wanted in example.reference:
            [(name, arguments)] = wanted.items()
            first = {key: _plain(values[0]) for key, values in arguments.items() if values[0] != ""}
            calls.append({"name": name.replace(".", "_"), "arguments": first})
        answer = f"<tool_call>{json.dumps(calls)}</tool_call>"
        right += accuracy.counts(answer, example) == (1.0, 1.0)
    assert right == len(examples)


def _plain(value: object) -> object:
    """The first accepted value at every depth."""
    if isinstance(value, dict):
        return {k: _plain(v[0] if isinstance(v, list) and v else v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def test_pages_are_cut_in_two(folder: Path) -> None:
    from pomona.adapters.recipes.extract import _pages

    training, held_out = (list(_pages(folder, held_out=part)) for part in (False, True))
    assert len(training) >= 2 and len(held_out) >= 2
    assert not {one.request.content for one in training} & {one.request.content for one in held_out}
    for one in (*training, *held_out):
        assert all(value in one.request.content for value in json.loads(one.answer).values())


def test_meetings_of_the_test_split_are_never_trained_on(folder: Path) -> None:
    task = get("summarize")
    report = RowReport("summarize")
    trained = {
        task.example(row).request.content for row in rows(task, RecipeOptions(rows=400, data=folder), report)
    }
    assert report.sources["qmsum"] >= 10
    held_out = task.held_out(folder)
    assert sum(example.source == "qmsum" for example in held_out) >= 20
    assert not trained & {example.request.content for example in held_out}
