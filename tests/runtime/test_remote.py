"""RemoteModel against a local server that behaves, and misbehaves, as OpenAI-compatible servers do."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from email.utils import formatdate
from time import time
from typing import Any

import pytest
from openai_server import (
    EVENTS,
    JSON,
    USAGE,
    Answer,
    OpenAIServer,
    calls_of,
    chunk,
    completion,
    event,
    refusal,
    serving,
    stream,
    words,
)
from pydantic import BaseModel

from pomona.errors import PomonaError
from pomona.runtime import remote_http
from pomona.runtime.remote import RemoteModel
from pomona.runtime.reply import AnswerError
from pomona.runtime.sampling import Sampling
from pomona.runtime.transcript import Transcript

KEY = "sk-very-secret"


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with serving() as server:
        yield server


@pytest.fixture
def model(server: OpenAIServer) -> Iterator[RemoteModel]:
    with RemoteModel(server.url, "big", api_key=KEY, timeout=20, max_retries=2) as model:
        yield model


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been slept."""
    slept: list[float] = []

    async def asleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(remote_http, "_sleep", slept.append)
    monkeypatch.setattr(remote_http, "_asleep", asleep)
    return slept


class Ticket(BaseModel):
    title: str
    urgent: bool


def add(a: int, b: int = 1) -> int:
    """Adds two numbers."""
    return a + b


# --- what is sent and what comes back -----------------------------------------------------------------------


def test_a_conversation(server: OpenAIServer, model: RemoteModel) -> None:
    server.will(completion("Hello."), completion("Well."))
    session = model.session(instructions="Be kind.", max_new_tokens=9)
    reply = session.respond("Hi")
    assert (reply.content, reply.finish_reason) == ("Hello.", "stop")
    assert (reply.usage.prompt_tokens, reply.usage.new_tokens, reply.usage.reused_tokens) == (12, 5, 8)
    assert 0 < reply.usage.first_token_seconds <= reply.usage.seconds
    changed = Sampling(temperature=0.5, top_p=0.9, seed=4, presence_penalty=0.5, logit_bias=((7, -1.0),))
    session.respond("How are you?", sampling=changed)
    first, second = server.seen
    assert first.path == "/v1/chat/completions"
    assert first.headers["Authorization"] == f"Bearer {KEY}"
    assert first.body == {
        "model": "big",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        "max_tokens": 9,
        "temperature": 0.0,
    }
    assert second.body["messages"][2:] == [
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "How are you?"},
    ]
    assert (second.body["temperature"], second.body["top_p"], second.body["seed"]) == (0.5, 0.9, 4)
    assert (second.body["presence_penalty"], second.body["logit_bias"]) == (0.5, {"7": -1.0})
    assert "frequency_penalty" not in second.body


def test_an_adapter_is_a_model_of_the_server(server: OpenAIServer, model: RemoteModel) -> None:
    server.will(completion("a"), completion("b"))
    session = model.session(adapter="summarize")
    assert session.respond("x").adapter == "summarize"
    session.respond("x", adapter="reply")
    assert [seen.body["model"] for seen in server.seen] == ["summarize", "reply"]


def test_a_key_is_not_needed_and_never_shown(server: OpenAIServer, model: RemoteModel) -> None:
    server.will(completion("a"), refusal(401, {"error": {"message": f"bad key {KEY}"}}))
    RemoteModel(server.url, "big").session().respond("x")
    assert "Authorization" not in server.seen[0].headers
    assert KEY not in repr(model)
    with pytest.raises(PomonaError, match=r"bad key \(the API key\).*check api_key"):
        model.session().respond("x")


def test_a_stream(server: OpenAIServer, model: RemoteModel) -> None:
    hold = threading.Event()
    answer = words("One ", "ünd ", "two.")
    answer.hold = hold
    server.will(answer)
    session = model.session()
    pieces = session.stream("x")
    assert [next(pieces) for _ in range(3)] == ["One ", "ünd ", "two."], "they come before the end"
    hold.set()
    assert list(pieces) == []
    assert pieces.reply.usage.new_tokens == 5
    assert server.last["stream"] is True and server.last["stream_options"] == {"include_usage": True}
    assert len(session.transcript.turns) == 1


def test_a_schema(server: OpenAIServer, model: RemoteModel) -> None:
    text = '{"title":"leak","urgent":true}'
    server.will(completion(text), words(text[:9], text[9:]), completion(text), completion("[1, 2]"))
    session = model.session()
    assert session.respond("x", schema=Ticket).content == Ticket(title="leak", urgent=True)
    sent = server.last["response_format"]
    assert sent["type"] == "json_schema" and sent["json_schema"]["strict"] is True
    assert sent["json_schema"]["schema"]["required"] == ["title", "urgent"]
    pieces = session.stream("x", schema=Ticket)
    assert "".join(pieces) == text
    assert pieces.reply.content.title == "leak"
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    assert session.respond("x", schema=schema).content["urgent"] is True
    assert server.last["response_format"]["json_schema"]["strict"] is False
    assert session.respond("x", schema=list[int]).content == [1, 2]


@pytest.mark.parametrize(
    ("schema", "text", "message"),
    [
        (Ticket, '{"title":"leak"}', "urgent: Field required"),
        (Ticket, "Sure! Here is it:", "Invalid JSON"),
        ({"type": "object", "required": ["n"]}, "{}", "does not obey the schema .'n' is a required"),
        ({"type": "object"}, "no", "not valid"),
    ],
)
def test_a_server_that_ignores_the_schema_is_found_out(
    server: OpenAIServer, model: RemoteModel, schema: Any, text: str, message: str
) -> None:
    server.will(completion(text))
    session = model.session()
    with pytest.raises(AnswerError, match=message):
        session.respond("x", schema=schema)
    assert len(session.transcript) == 0


def test_choices(server: OpenAIServer, model: RemoteModel) -> None:
    server.will(completion('{"choice":"red"}'), words('{"cho', 'ice":"green"}'), completion("red"))
    session = model.session()
    reply = session.respond("x", choices=["red", "green"])
    assert reply.content == reply.text == "red"
    assert server.last["response_format"]["json_schema"]["schema"]["properties"]["choice"]["enum"] == [
        "red",
        "green",
    ]
    pieces = session.stream("x", choices=["red", "green"])
    assert list(pieces) == ["green"]
    assert pieces.reply.content == "green"
    with pytest.raises(AnswerError, match="none of the choices"):
        session.respond("x", choices=["red", "green"])


def test_tools(server: OpenAIServer, model: RemoteModel) -> None:
    server.will(
        completion(None, ("add", {"a": 2, "b": 3}), ("add", '{"a":4}')),
        completion("Ten."),
        completion("Bye."),
    )
    session = model.session(tools=[add])
    reply = session.respond("x", tool_choice="required")
    assert reply.text == "Ten."
    assert [(use.arguments, use.output) for use in reply.tool_calls] == [
        ({"a": 2, "b": 3}, "5"),
        ({"a": 4}, "5"),
    ]
    first, second = server.seen
    assert first.body["tools"] == [tool.definition for tool in session.tools]
    assert (first.body["tool_choice"], second.body["tool_choice"]) == ("required", "auto")
    assert second.body["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": calls_of(("add", {"a": 2, "b": 3}), ("add", {"a": 4})),
        },
        {"role": "tool", "content": "5", "tool_call_id": "srv_0"},
        {"role": "tool", "content": "5", "tool_call_id": "srv_1"},
    ]
    restored = model.session(tools=[add], transcript=Transcript.from_json(session.transcript.to_json()))
    restored.respond("y")
    assert server.last["messages"][:4] == second.body["messages"]


def test_a_named_tool(server: OpenAIServer, model: RemoteModel) -> None:
    server.will(completion(None, ("add", {"a": 2}), finish="stop"), completion("3"))
    model.session(tools=[add]).respond("x", tool_choice="add")
    assert server.seen[0].body["tool_choice"] == {"type": "function", "function": {"name": "add"}}


def test_tools_in_a_stream_come_in_parts(server: OpenAIServer, model: RemoteModel) -> None:
    def part(index: int, **rest: Any) -> bytes:
        return chunk(tool_calls=[{"index": index, **rest}])

    server.will(
        stream(
            chunk(role="assistant", content="I add. "),
            part(0, id="a", type="function", function={"name": "add", "arguments": ""}),
            part(0, function={"arguments": '{"a":'}),
            part(0, function={"arguments": " 2}"}),
            part(1, id="b", type="function", function={"name": "add", "arguments": '{"a": 7}'}),
            chunk("tool_calls"),
        ),
        words("Done."),
    )
    pieces = model.session(tools=[add]).stream("x")
    assert list(pieces) == ["I add. ", "Done."]
    assert [use.output for use in pieces.reply.tool_calls] == ["3", "8"]
    assert pieces.reply.text == "Done."
    assert server.last["messages"][1]["content"] == "I add. "


def test_extra_fields(server: OpenAIServer) -> None:
    server.will(completion("a"))
    model = RemoteModel(server.url, "big", extra_body={"top_k": 20})
    model.session().respond("x")
    assert server.last["top_k"] == 20
    with pytest.raises(PomonaError, match="extra_body: temperature is set by the session"):
        RemoteModel(server.url, "big", extra_body={"temperature": 2}).session().respond("x")


def test_asyncio(server: OpenAIServer, model: RemoteModel) -> None:
    async def main() -> None:
        server.will(completion(None, ("add", {"a": 2})), completion("3"))
        assert (await model.session(tools=[add]).arespond("x")).text == "3"
        server.will(words("One ", "two."))
        pieces = model.session().astream("x")
        assert [piece async for piece in pieces] == ["One ", "two."]
        assert pieces.reply.usage.prompt_tokens == 12
        server.will(*[completion("same")] * 8)
        replies = await asyncio.gather(*(model.session().arespond(str(n)) for n in range(8)))
        assert [reply.text for reply in replies] == ["same"] * 8

    asyncio.run(main())


def test_a_stream_that_is_left_early(server: OpenAIServer, model: RemoteModel) -> None:
    server.will(words(*["word "] * 50), words("a"))
    session = model.session()
    with session.stream("x") as pieces:
        next(pieces)
    assert len(session.transcript) == 0
    assert list(session.stream("y")) == ["a"]

    async def main() -> None:
        server.will(words(*["word "] * 50))
        async with session.astream("x") as pieces:
            await anext(pieces)

    asyncio.run(main())
    assert len(session.transcript.turns) == 1


# --- busy servers -------------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again(server: OpenAIServer, model: RemoteModel, pauses: list[float]) -> None:
    soon = formatdate(time() + 5, usegmt=True)
    server.will(
        refusal(429, "slow down", Retry_After="7"),
        refusal(503, "", Retry_After=soon),
        completion("a"),
        refusal(503, "", Retry_After="soon"),
        refusal(429),
        words("b"),
    )
    session = model.session()
    assert session.respond("x").text == "a"
    assert pauses[0] == 7 and 0 < pauses[1] <= 5
    assert list(session.stream("x")) == ["b"]
    assert 0.25 <= pauses[2] <= 0.5 and 0.5 <= pauses[3] <= 1.0, "growing where nothing is said"
    assert len(server.seen) == 6


def test_asyncio_asks_again_too(server: OpenAIServer, model: RemoteModel, pauses: list[float]) -> None:
    server.will(refusal(429, "", Retry_After="3"), completion("a"))
    assert asyncio.run(model.session().arespond("x")).text == "a"
    assert pauses == [3]


def test_but_not_for_ever(server: OpenAIServer, model: RemoteModel, pauses: list[float]) -> None:
    server.will(*[refusal(429, {"error": {"message": "quota"}})] * 3)
    session = model.session()
    with pytest.raises(PomonaError, match=r"is busy: status 429 \(quota\) after 3 attempts"):
        session.respond("x")
    assert len(pauses) == 2 and len(server.seen) == 3
    server.will(refusal(503, "", Retry_After="3600"))
    with pytest.raises(PomonaError, match="asks to wait 3600 seconds"):
        session.respond("x")
    assert len(session.transcript) == 0


def test_other_errors_are_told_at_once(server: OpenAIServer, model: RemoteModel, pauses: list[float]) -> None:
    for status, body, message in (
        (400, {"error": {"message": "too long"}}, r"status 400 \(too long\); change the request"),
        (400, {"detail": [{"loc": ["x"]}]}, r"status 400 \(\[\{\"loc\": \[\"x\"\]\}\]\)"),
        (404, "<h1>Not\nFound</h1>", r"404 \(<h1>Not\\nFound</h1>\); check base_url"),
        (500, {"message": "oops"}, r"500 \(oops\); look at the server"),
        (500, "", r"500 \(no explanation\)"),
        (403, {"error": "no"}, r"403 \(no\); check api_key"),
    ):
        server.will(refusal(status, body), refusal(status, body), refusal(status, body))
        calls = (
            lambda: model.session().respond("x"),
            lambda: list(model.session().stream("x")),
            lambda: asyncio.run(model.session().arespond("x")),
        )
        for call in calls:
            with pytest.raises(PomonaError, match=message) as caught:
                call()
            assert "\n" not in str(caught.value) and server.url in str(caught.value)
    assert pauses == []


# --- nowhere else -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(server: OpenAIServer, model: RemoteModel, status: int) -> None:
    with serving() as elsewhere:
        server.will(*[refusal(status, "", Location=elsewhere.url)] * 2)
        with pytest.raises(PomonaError, match=f"redirects to {elsewhere.url}, which is not followed"):
            model.session().respond("x")
        with pytest.raises(PomonaError, match="which is not followed"):
            asyncio.run(model.session().arespond("x"))
        assert elsewhere.seen == []


def test_proxies_of_the_environment_are_not_used(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        server.will(completion("a"), completion("b"))
        with RemoteModel(server.url, "big") as model:
            assert model.session().respond("x").text == "a"
            assert asyncio.run(model.session().arespond("x")).text == "b"
        assert proxy.seen == []


# --- servers that misbehave ---------------------------------------------------------------------------------


BAD_STREAMS = {
    "without [DONE]": (stream(chunk(content="a"), chunk("stop"), done=False), r"without \[DONE\]"),
    "broken off": (stream(chunk(content="a"), done=False, cut=True), "broke off"),
    "no JSON": (stream(b"data: {nonsense\n\n"), "an event that is no JSON"),
    "nested": (stream(event("[" * 100_000)), "an event that is no JSON"),
    "an error": (stream(chunk(content="a"), event({"error": {"message": "out of memory"}})), "out of memory"),
    "an error event": (stream(b"event: error\ndata: overheated\n\n"), "overheated"),
    "plain JSON": (completion("a"), "does not speak the protocol"),
    "a list": (stream(event([1])), "no chat completion"),
    "two choices": (stream(event({"choices": [{}, {}]})), "no chat completion"),
    "a number": (stream(chunk(content=3)), "no chat completion .*content"),
    "no end": (stream(chunk(content="a")), "finish_reason None"),
    "a strange end": (stream(chunk("tired")), "finish_reason tired"),
    "a filter": (stream(chunk("content_filter")), "withheld the answer"),
    "parts out of turn": (
        stream(chunk(tool_calls=[{"index": 2, "function": {"arguments": "x"}}])),
        "number 2 out of turn",
    ),
    "endless": (Answer(200, EVENTS, [b"data: " + b"x" * (1 << 20)] * 2), "broke off"),
    "no UTF-8": (stream(b"data: \xff\xfe\n\n"), "no JSON"),
    "nothing": (Answer(200, EVENTS, []), r"without \[DONE\]"),
}


@pytest.mark.parametrize("name", BAD_STREAMS)
def test_a_bad_stream_is_one_clear_error(server: OpenAIServer, model: RemoteModel, name: str) -> None:
    answer, message = BAD_STREAMS[name]
    server.will(answer, answer)
    session = model.session()
    with pytest.raises(PomonaError, match=message) as caught:
        list(session.stream("x"))
    assert "\n" not in str(caught.value)

    async def read() -> None:
        async for _ in session.astream("x"):
            pass

    with pytest.raises(PomonaError, match=message):
        asyncio.run(read())
    assert len(session.transcript) == 0


def body_of(value: Any) -> Answer:
    return Answer(200, JSON, [json.dumps(value).encode()])


BAD_ANSWERS = {
    "no JSON": (Answer(200, JSON, [b"<html>"]), "no JSON; is base_url right"),
    "nothing": (Answer(200, JSON, []), "no JSON"),
    "broken off": (Answer(200, JSON, [b'{"choices":'], cut=True), "broke off"),
    "null": (body_of(None), "no chat completion"),
    "no choice": (body_of({"choices": []}), "without a message"),
    "no message": (body_of({"choices": [{"finish_reason": "stop"}]}), "without a message"),
    "a bad usage": (body_of({"choices": [], "usage": {"prompt_tokens": "many"}}), "usage.prompt_tokens"),
    "refusal": (completion(None, refusal="I will not"), r"refused to answer \(I will not\)"),
    "a call without name": (completion(None, ("", {})), "a tool call without a name"),
    "arguments": (completion(None, ("add", "[1]")), "called add with arguments that are no JSON object"),
    "cut arguments": (completion(None, ("add", '{"a'), finish="length"), "may have cut it off"),
    "bad arguments": (completion(None, ("add", {"a": "x"})), "tool add: ValueError: a: Input should be"),
    "another tool": (completion(None, ("mul", {})), "there is no tool mul"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_bad_answer_is_one_clear_error(server: OpenAIServer, model: RemoteModel, name: str) -> None:
    answer, message = BAD_ANSWERS[name]
    server.will(answer)
    session = model.session(tools=[add])
    with pytest.raises(PomonaError, match=message) as caught:
        session.respond("x")
    assert "\n" not in str(caught.value)
    assert len(session.transcript) == 0


def test_what_servers_leave_out_or_add_is_no_error(server: OpenAIServer, model: RemoteModel) -> None:
    lean = stream(
        b": a comment\n\n",
        b"id: 3\r\ndata: "
        + json.dumps({"choices": [{"delta": {"content": "a"}}], "x": 1}).encode()
        + b"\r\n\r\n",
        b"retry: 5\ndata: "
        + json.dumps({"choices": [{"finish_reason": "length"}], "usage": USAGE}).encode()
        + b"\n\n",
    )
    server.will(lean, body_of({"choices": [{"message": {"content": "b"}, "finish_reason": "stop"}]}))
    pieces = model.session().stream("x")
    assert list(pieces) == ["a"]
    assert pieces.reply.finish_reason == "length"
    reply = model.session().respond("x")
    assert (reply.text, reply.usage.prompt_tokens, reply.usage.new_tokens) == ("b", 0, 0)


def test_an_answer_without_end_is_given_up(
    server: OpenAIServer, model: RemoteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_http, "MAX_RESPONSE_BYTES", 1000)
    server.will(Answer(200, JSON, [b" " * 600] * 3), words(*["x" * 300] * 5))
    with pytest.raises(PomonaError, match="larger than 64 MiB"):
        model.session().respond("x")
    with pytest.raises(PomonaError, match="more than 64 MiB"):
        list(model.session().stream("x"))


def test_a_server_that_is_not_there_or_says_nothing(server: OpenAIServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = RemoteModel(f"http://127.0.0.1:{free.getsockname()[1]}/v1", "big", timeout=20)
        with pytest.raises(PomonaError, match=r"cannot be reached .*; start the server"):
            gone.session().respond("x")
    hold = threading.Event()
    server.will(Answer(200, JSON, [b"{", b"}"], hold=hold))
    slow = RemoteModel(server.url, "big", timeout=0.2)
    with pytest.raises(PomonaError, match=r"said nothing for 0\.2 seconds; raise timeout"):
        slow.session().respond("x")
    hold.set()


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "[0-9]+"}, "regex: the protocol cannot express it; use schema or choices"),
        ({"grammar": "start: /a/"}, "grammar: the protocol cannot express it"),
        ({"sampling": Sampling(top_k=5)}, "sampling: top_k is not in the protocol"),
        ({"sampling": Sampling(min_p=0.1)}, "sampling: min_p"),
        ({"sampling": Sampling(repetition_penalty=1.1)}, "sampling: repetition_penalty"),
        ({"schema": {"type": "nonsense"}}, "schema: is no JSON schema"),
    ],
)
def test_what_the_protocol_cannot_express_is_refused(
    server: OpenAIServer, model: RemoteModel, options: Any, message: str
) -> None:
    with pytest.raises(PomonaError, match=message):
        model.session().respond("x", **options)
    assert server.seen == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ftp://x/v1", "m"), "must be like http"),
        (("127.0.0.1:8000/v1", "m"), "base_url"),
        (("", "m"), "must be like http"),
        ((3, "m"), "base_url: must be a text"),
        (("http://user:pass@x/v1", "m"), "base_url: has a password in it; use api_key"),
        (("http://x/v1?key=3", "m"), "has . or #"),
        (("http://x/v1", ""), "model: must be"),
    ],
)
def test_addresses_that_make_no_sense(arguments: Any, message: str) -> None:
    with pytest.raises(PomonaError, match=message) as caught:
        RemoteModel(*arguments)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout = 0"),
        ({"timeout": None}, "timeout = None"),
        ({"max_retries": -1}, "max_retries = -1"),
        ({"api_key": "a\nb"}, "api_key: must be a text of printable"),
    ],
)
def test_options_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(PomonaError, match=message):
        RemoteModel("http://127.0.0.1:1/v1", "m", **options)


def test_the_oldest_turns_cannot_be_dropped_here(model: RemoteModel) -> None:
    with pytest.raises(PomonaError, match="nobody here knows the server's context"):
        model.session(on_overflow="drop_oldest")


def test_a_closed_model_says_so(server: OpenAIServer) -> None:
    model = RemoteModel(server.url, "big")
    session = model.session()
    model.close()
    model.close()
    with pytest.raises(PomonaError, match="this RemoteModel is closed"):
        session.respond("x")
    with pytest.raises(PomonaError, match="this RemoteModel is closed"):
        asyncio.run(session.arespond("x"))
