"""Features under guard: contents and answers are judged, in both worlds, and a refusal is final."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answering_helpers import AnsweringModel, content

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "safety"))
from guarded_model import WordGuardrail, guarded_model

from pomona import features
from pomona.features import aio, plans
from pomona.features.router import Policy, Router
from pomona.features.streaming import Finished, Piece, stream
from pomona.runtime.model import Model
from pomona.safety.guardrail_policy import Blocked, GuardrailPolicy
from pomona.safety.screening import Shield


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.load(str(guarded_model(tmp_path_factory.mktemp("judge"))), threads=1) as loaded:
        yield loaded


@pytest.fixture
def shield(judge: Model) -> Shield:
    return Shield(WordGuardrail(judge))


def test_a_content_that_does_not_pass_is_refused_in_both_worlds(shield: Shield) -> None:
    model = AnsweringModel(lambda _: "A summary.")
    assert features.summarize("A burglary.", model=model).text == "A summary."
    model.shield = shield
    with pytest.raises(Blocked, match="illegal activities") as raised:
        features.summarize("A burglary.", model=model)
    assert (raised.value.refusal.side, raised.value.refusal.feature) == ("input", "summarize")
    with pytest.raises(Blocked):
        asyncio.run(aio.summarize("A burglary.", model=model))
    assert features.summarize("A picnic.", model=model).text == "A summary."


def test_an_answer_that_does_not_pass_is_refused(shield: Shield) -> None:
    model = AnsweringModel(lambda _: "A burglary.")
    model.shield = shield
    with pytest.raises(Blocked) as raised:
        features.summarize("A picnic.", model=model)
    assert raised.value.refusal.side == "output"


def test_the_policy_goes_by_the_tasks_name(judge: Model) -> None:
    model = AnsweringModel(content)
    model.shield = Shield(
        WordGuardrail(judge),
        GuardrailPolicy.model_validate({"features": {"proofread": {"input": False, "output": False}}}),
    )
    assert features.proofread("A burglary.", model=model).text == "A burglary."
    with pytest.raises(Blocked):
        features.summarize("A burglary.", model=model)


def test_a_refused_answer_is_not_asked_for_elsewhere(shield: Shield) -> None:
    device, server = AnsweringModel(lambda _: "Device."), AnsweringModel(lambda _: "A burglary.")
    server.shield = shield
    router = Router(device, None, Policy(prefer="server"))
    router.server = server  # type: ignore[assignment]
    with pytest.raises(Blocked):
        features.summarize("A picnic.", model=router, consent=True)
    assert device.prompts == []


def test_a_stream_shows_nothing_before_it_is_judged(shield: Shield) -> None:
    async def pieces(model: AnsweringModel) -> list[Any]:
        return [event async for event in stream(plans.summarize("A picnic.", model=model))]

    good, bad = AnsweringModel(lambda _: "A picnic."), AnsweringModel(lambda _: "A burglary.")
    good.shield = bad.shield = shield
    events = asyncio.run(pieces(good))
    assert [event.text for event in events if isinstance(event, Piece)] == ["A picnic."]
    assert isinstance(events[-1], Finished)
    with pytest.raises(Blocked):
        asyncio.run(pieces(bad))
