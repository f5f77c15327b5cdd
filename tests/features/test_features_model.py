"""The features on the real model: it runs, in both worlds, and says who answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from pomona import features
from pomona.errors import PomonaError
from pomona.evaluation.tasks import evaluate_task
from pomona.features import aio
from pomona.runtime.model import Model

MAIL = (
    "Hi Ben,\n\nthe meeting with Northwind on Monday at 9:15 has to move. Clara is away until Thursday. Can "
    "we meet on Thursday at 14:00 in room 204?\n\nThanks,\nAnna"
)


@pytest.fixture(scope="module")
def model(smollm2_4bit_dir: Path) -> Iterator[Model]:
    with Model.load(str(smollm2_4bit_dir), threads=1) as loaded:
        yield loaded


def test_every_feature_answers(model: Model) -> None:
    results = [
        features.summarize(MAIL, model=model),
        features.proofread("She go to school.", model=model),
        features.rewrite("Send it.", tone="concise", model=model),
        features.key_points(MAIL, model=model),
        features.replies(MAIL, model=model),
        features.prioritize(["Smoke in the kitchen!", "20% off"], model=model),
        features.extract(MAIL, model=model),
    ]
    assert {result.origin.place for result in results} == {"device"}
    assert {result.origin.adapter for result in results} == {None}
    assert results[0].text and results[3].points and len(results[4].replies) == 3
    assert {"contacts", "events"} == set(results[6].value.model_dump())


def test_both_worlds_give_the_same(model: Model) -> None:
    long = "\n\n".join([MAIL] * 4)
    plain = features.proofread(long, model=model)
    other = asyncio.run(aio.proofread(long, model=model))
    assert plain == other and plain.parts > 1


def test_an_unknown_adapter_is_refused(model: Model) -> None:
    with pytest.raises(PomonaError, match="no such adapter"):
        features.summarize(MAIL, model=model, adapter="nobody")


def test_evaluation_runs_on_the_scheduler(model: Model) -> None:
    from pomona.adapters.recipes.prioritize import held_out

    report = evaluate_task(model, "prioritize", held_out(Path()), limit=6)
    assert report.rows == 6 and report.unusable == 0 and set(report.answers) <= {"urgent", "not urgent"}
    assert model.scheduler.stats().finished["stop"] >= 6
    with pytest.raises(PomonaError, match="no such adapter"):
        evaluate_task(model, "prioritize", held_out(Path()), limit=6, adapter="nobody")
