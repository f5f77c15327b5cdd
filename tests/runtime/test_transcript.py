"""Transcripts: there and back through JSON, and nothing but conversations."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pomona.errors import PomonaError
from pomona.runtime.transcript import (
    Entry,
    Instructions,
    Prompt,
    Response,
    ToolCall,
    ToolCalls,
    ToolOutput,
    Transcript,
)

WHOLE: tuple[Entry, ...] = (
    Instructions(text="Be brief."),
    Prompt(text="Weather in Oslo and Rome?"),
    ToolCalls(
        text="I look.",
        calls=(
            ToolCall(id="a", name="weather", arguments={"city": "Oslo", "days": [1, 2.5, None]}),
            ToolCall(id="b", name="weather", arguments={}),
        ),
    ),
    ToolOutput(id="a", name="weather", text="rain"),
    ToolOutput(id="b", name="weather", text="KeyError: city", failed=True),
    Response(text="Rain. ☔", adapter="brief", adapter_version=2),
    Prompt(text="Thanks"),
    Response(text=""),
)


def test_json_there_and_back() -> None:
    transcript = Transcript(entries=WHOLE)
    text = transcript.to_json()
    assert Transcript.from_json(text) == transcript
    assert Transcript.from_json(text.encode()) == transcript
    assert Transcript.from_json(transcript.to_json(indent=2)) == transcript
    assert json.loads(text)["version"] == 1
    assert Transcript.from_json(Transcript().to_json()) == Transcript()


def test_turns_and_instructions() -> None:
    transcript = Transcript(entries=WHOLE)
    assert transcript.instructions == "Be brief."
    assert [len(turn) for turn in transcript.turns] == [5, 2]
    assert Transcript(entries=WHOLE[6:]).instructions is None
    assert Transcript().turns == ()


def test_nothing_in_it_changes() -> None:
    transcript = Transcript(entries=WHOLE)
    with pytest.raises(ValueError, match="frozen"):
        transcript.entries = ()  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        transcript.entries[1].text = "x"  # type: ignore[union-attr, misc]
    longer = transcript.with_entries(WHOLE[6:])
    assert (len(longer), len(transcript)) == (10, 8)


@pytest.mark.parametrize(
    "entries",
    [
        WHOLE[1:2],  # no response
        WHOLE[:3],  # no outputs
        WHOLE[:4],  # an output is missing
        (*WHOLE[:3], WHOLE[4], WHOLE[3], WHOLE[5]),  # outputs in another order
        (*WHOLE[:5], WHOLE[3], WHOLE[5]),  # one too many
        (WHOLE[1], WHOLE[0], WHOLE[5]),  # instructions in the middle
        (WHOLE[0], WHOLE[0]),
        WHOLE[5:],  # a response to nothing
        (*WHOLE[:6], WHOLE[5]),
        (WHOLE[1], WHOLE[1], WHOLE[5]),
    ],
)
def test_an_order_that_is_no_conversation_is_refused(entries: tuple[Entry, ...]) -> None:
    with pytest.raises(PomonaError, match=r"transcript: (entry \d .* does not follow|the last turn has no)"):
        Transcript(entries=entries)


GOOD = json.loads(Transcript(entries=WHOLE).to_json())


def changed(path: list[Any], value: Any) -> str:
    copy = json.loads(json.dumps(GOOD))
    place = copy
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return json.dumps(copy)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "null",
        changed(["version"], 2),
        changed(["more"], 1),
        changed(["entries", 1, "role"], "user"),
        changed(["entries", 1, "kind"], "question"),
        changed(["entries", 1, "text"], 3),
        changed(["entries", 2, "calls"], []),
        changed(["entries", 2, "calls", 0, "arguments"], []),
        changed(["entries", 4, "failed"], "yes"),
        changed(["entries", 5, "adapter_version"], 1.5),
        changed(["entries"], "x"),
    ],
)
def test_what_to_json_did_not_write_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(PomonaError, match="transcript: ") as caught:
        Transcript.from_json(text)
    assert "\n" not in str(caught.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_json_gives_a_transcript_or_one_error(value: Any) -> None:
    for text in (json.dumps(value), json.dumps({"version": 1, "entries": value})):
        try:
            Transcript.from_json(text)
        except PomonaError:
            continue
