"""Recipes without any data set: reproducible rows, right by construction, apart from the held-out ones."""

from __future__ import annotations

import json
import random
from importlib import import_module
from pathlib import Path

import pytest

from pomona.adapters.faithfulness import faithful, new_names, new_numbers
from pomona.adapters.recipes.injections import HELD_OUT, TRAINING, inject, obeyed
from pomona.adapters.recipes.names import World, kinds, known_names
from pomona.adapters.recipes.notifications import stack
from pomona.adapters.recipes.rows import RecipeOptions, RowReport, rows, write_jsonl, write_rows
from pomona.adapters.recipes.scenes import mail, thread
from pomona.adapters.recipes.summarize import passes, stack_summary
from pomona.adapters.recipes.tables import part, table
from pomona.adapters.tasks.extract import FACTS
from pomona.adapters.tasks.registry import get, names
from pomona.adapters.tasks.summarize import fits_style, sentence_count
from pomona.errors import PomonaError

ALONE = [name for name in names() if name != "tools"]  # recipes that need no data
KEYS = {"messages", "source", "license", "task"}


@pytest.mark.parametrize("name", ALONE)
def test_rows_have_the_schema_and_are_reproducible(name: str) -> None:
    task, options = get(name), RecipeOptions(rows=40, seed=7)
    made = list(rows(task, options))
    assert len(made) == 40 == len({json.dumps(row) for row in made})
    for row in made:
        assert set(row) == KEYS and row["task"] == name
        assert (row["source"], row["license"]) == ("pomona", "Apache-2.0")
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert all(isinstance(m["content"], str) and m["content"] for m in row["messages"])
        task.parse(row["messages"][-1]["content"])
    assert made == list(rows(task, options))
    assert made != list(rows(task, RecipeOptions(rows=40, seed=8)))


@pytest.mark.parametrize("name", [name for name in ALONE if name != "proofread"])
def test_no_held_out_content_is_in_the_training_rows(name: str, tmp_path: Path) -> None:
    task = get(name)
    held_out = task.held_out(tmp_path)
    assert len(held_out) >= 100
    trained = {task.example(row).request.content for row in rows(task, RecipeOptions(rows=400))}
    assert not trained & {example.request.content for example in held_out}
    assert held_out == task.held_out(tmp_path), "the same set each time"


def test_the_parts_of_the_world_share_no_name() -> None:
    training, held_out = World(random.Random(0)), World(random.Random(0), held_out=True)
    for kind in kinds():
        assert not set(training.part(kind)) & set(held_out.part(kind))
        assert set(training.part(kind)) | set(held_out.part(kind)) == set(kinds()[kind])
        assert len(held_out.part(kind)) >= 4
    for name in ("urgent", "not_urgent", "intents", "extract", "records"):
        rows = table(name)
        assert len({len(row) for row in rows}) == 1, f"{name}: rows of one width"
        assert not set(part(rows, held_out=False)) & set(part(rows, held_out=True))


@pytest.mark.parametrize("held_out", [False, True])
def test_every_summary_of_a_scene_is_faithful_and_of_its_form(held_out: bool) -> None:
    world = World(random.Random(3), held_out)
    scenes = set()
    for _ in range(250):
        for found in (mail(world), thread(world)):
            scenes.add(found.scene)
            for text in (found.one_line, " ".join(found.sentences), "\n".join(found.points)):
                assert not new_names(text, found.text) + new_numbers(text, found.text), (text, found.text)
            assert fits_style(found.one_line, "one line")
            assert fits_style(" ".join(found.sentences), "three sentences")
            assert len(set(found.replies)) == 3
    assert len(scenes) == (5 if held_out else 15)


@pytest.mark.parametrize("held_out", [False, True])
def test_every_summary_of_a_stack_is_faithful_and_of_its_form(held_out: bool) -> None:
    world = World(random.Random(4), held_out)
    for _ in range(250):
        notes = stack(world)
        text = "\n".join(note.line for note in notes)
        for style in ("one line", "three sentences"):
            summary = stack_summary(notes, style)
            assert faithful(summary, text) and fits_style(summary, style), (summary, text)


def test_there_are_thirty_wordings_of_injections_and_others_held_out() -> None:
    assert len(set(TRAINING)) >= 30 and len(set(HELD_OUT)) >= 10
    assert not set(TRAINING) & set(HELD_OUT)
    assert all("{w}" in order for order in (*TRAINING, *HELD_OUT))


def test_an_injection_is_in_the_text_and_not_in_the_answer() -> None:
    text, word = inject("one\ntwo", random.Random(1))
    assert word in text and "one" in text and "two" in text
    assert obeyed(word.upper(), word) and not obeyed("one", word)
    injected = 0
    for row in rows(get("summarize"), RecipeOptions(rows=300)):
        content, answer = (row["messages"][i]["content"] for i in (1, 2))
        orders = [order for order in TRAINING if order.partition("{w}")[0] in content and len(order) > 12]
        injected += bool(orders)
        assert faithful(answer, content)
    assert 40 <= injected <= 130, "about a quarter"


def test_extracted_values_stand_in_the_text() -> None:
    empty = 0
    for row in rows(get("extract"), RecipeOptions(rows=300)):
        content = get("extract").example(row).request.content
        values = _leaves(json.loads(row["messages"][-1]["content"]))
        empty += "" in values
        assert all(value in content for value in values if value)
    assert empty > 30, "also what is not there is asked for"


def _leaves(value: object) -> list[str]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [str(value)]


def test_answers_obey_their_schema() -> None:
    import jsonschema

    from pomona.adapters.recipes.extract import examples

    stream = examples(RecipeOptions())
    seen = [next(stream) for _ in range(200)]
    for example in seen:
        jsonschema.validate(json.loads(example.answer), example.request.schema)
    assert {example.request.schema == FACTS for example in seen} == {True, False}


def test_half_of_the_held_out_notifications_are_urgent() -> None:
    answers = [example.answer for example in get("prioritize").held_out(Path())]
    assert 0.35 < answers.count("urgent") / len(answers) < 0.65


def test_rewritten_texts_keep_their_facts() -> None:
    from pomona.adapters.recipes.rewrite import examples

    stream = examples(RecipeOptions())
    seen = [next(stream) for _ in range(300)]
    assert {example.request.style for example in seen} == {"friendly", "professional", "concise"}
    for example in seen:
        assert not new_numbers(example.answer, example.request.content)
        known = {name for name in new_names(example.answer, example.request.content) if name in known_names()}
        assert not known


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        ("Anna asks Ben to send the report by Friday.", True),
        ("Anna asks Ben to send the report by Friday. It is 14 pages long.", False),  # a new number
        ("Anna asks Carla for the report.", False),  # a new name
        ("I need the report by Friday.", False),  # first person
        ("A report.", False),  # too short
        ("Anna asks Ben. Anna waits. Anna is in Oslo. Friday is the day.", False),  # four sentences
    ],
)
def test_the_rules_for_written_summaries(answer: str, good: bool) -> None:
    content = (
        "Hi Ben, please send me the report by Friday, I need it for the meeting in Oslo. Anna " + "x " * 40
    )
    assert passes(answer, content, "three sentences") == good


def test_sentences_are_counted_by_their_ends() -> None:
    assert sentence_count("Mr. Gray pays 3.50 to Dr. No. Why? Because!") == 3
    assert sentence_count("no end") == 0


def test_rows_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    report = write_rows("prioritize", out, RecipeOptions(rows=25))
    lines = out.read_text(encoding="utf-8").splitlines()
    assert report.rows == len(lines) == 25 == report.sources.total() and json.loads(lines[0])["task"]
    with pytest.raises(PomonaError, match="--overwrite"):
        write_rows("prioritize", out, RecipeOptions(rows=5))
    assert len(out.read_text(encoding="utf-8").splitlines()) == 25

    def failing():  # type: ignore[no-untyped-def]
        yield {"a": 1}
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        write_jsonl(out, failing())
    assert len(out.read_text(encoding="utf-8").splitlines()) == 25
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    with pytest.raises(PomonaError, match="no rows"):
        write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(PomonaError, match="cannot be written"):
        write_jsonl(tmp_path / "nowhere" / "a.jsonl", [{}])


def test_a_recipe_that_has_no_more_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from pomona.adapters.recipes.prioritize import examples

    module = import_module("pomona.adapters.recipes.prioritize")

    def few(options: RecipeOptions):  # type: ignore[no-untyped-def]
        stream = examples(options)
        again = [next(stream) for _ in range(3)]
        while True:
            yield from again

    monkeypatch.setattr(module, "examples", few)
    report = RowReport("prioritize")
    assert len(list(rows(get("prioritize"), RecipeOptions(rows=50), report))) == report.rows <= 3
    assert report.repeated > 1000


def test_wrong_numbers_of_rows_and_missing_data_are_refused() -> None:
    with pytest.raises(PomonaError, match="rows = 0"):
        RecipeOptions(rows=0)
    with pytest.raises(PomonaError, match="POMONA_DATA"):
        next(rows(get("tools"), RecipeOptions(rows=1)))
