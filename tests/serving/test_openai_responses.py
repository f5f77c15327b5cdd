"""The official client's `responses` against a running server: text, streams and tools say what chat says."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest
from test_openai_client import APPLES, MODEL, TIME, chat, text


def test_answers(client: openai.OpenAI) -> None:
    reply = client.responses.create(model=MODEL, input="Say yes.", max_output_tokens=60)
    assert reply.object == "response" and reply.status == "completed"
    assert reply.output_text == text(
        chat(client, [{"role": "user", "content": "Say yes."}], max_completion_tokens=60)
    )
    assert reply.usage and reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens


def test_says_that_it_was_cut_off(client: openai.OpenAI) -> None:
    reply = client.responses.create(model=MODEL, input="Name three apples.", max_output_tokens=3)
    assert reply.status == "incomplete" and reply.incomplete_details
    assert reply.incomplete_details.reason == "max_output_tokens"


def test_takes_instructions_and_items(client: openai.OpenAI) -> None:
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Name three apples."}]},
        {"role": "assistant", "content": "Fuji."},
        {"type": "message", "role": "user", "content": "Two more."},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        *APPLES,
        {"role": "assistant", "content": "Fuji."},
        {"role": "user", "content": "Two more."},
    ]
    reply = client.responses.create(model=MODEL, instructions="Be brief.", input=items, max_output_tokens=8)
    assert reply.output_text == text(chat(client, messages))


def test_streams_events(client: openai.OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input="Name three apples.", max_output_tokens=8)
    with client.responses.stream(model=MODEL, input="Name three apples.", max_output_tokens=8) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert [event.sequence_number for event in events] == sorted(event.sequence_number for event in events)
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"


def test_parses_into_a_pydantic_class(client: openai.OpenAI) -> None:
    class Answer(pydantic.BaseModel):
        red: bool

    reply = client.responses.parse(
        model=MODEL, input="Are apples red?", text_format=Answer, max_output_tokens=30
    )
    assert isinstance(reply.output_parsed, Answer)


def test_calls_tools_and_takes_their_results(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "strict": True, **TIME["function"]}]
    options: Any = {"model": MODEL, "tools": tools, "parallel_tool_calls": False, "max_output_tokens": 60}
    reply = client.responses.create(input="What time is it?", tool_choice="required", **options)
    [call] = reply.output
    assert call.type == "function_call" and call.name == "get_time"
    items: Any = [
        {"role": "user", "content": "What time is it?"},
        call.model_dump(include={"type", "call_id", "name", "arguments"}),
        {"type": "function_call_output", "call_id": call.call_id, "output": "Noon."},
    ]
    final = client.responses.create(input=items, tool_choice="none", **options)
    assert final.output_text


def test_streams_a_call(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", **TIME["function"]}]
    options: Any = {
        "model": MODEL,
        "tools": tools,
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    events = list(client.responses.create(input="What time is it?", stream=True, **options))
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [json.loads(event.arguments) for event in done] == [{}]
    assert events[-1].type == "response.completed"


def test_stores_nothing(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="x", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
