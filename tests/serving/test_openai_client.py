"""The official `openai` client against a running server on the real 4-bit model, unchanged."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, Literal

import openai
import pydantic
import pytest
from serving_server import WAIT, Running, until

MODEL = "smollm2-135m-4bit"
APPLES: list[Any] = [{"role": "user", "content": "Name three apples."}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}
TICKET = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 20},
        "priority": {"enum": ["low", "high"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["title", "priority", "count"],
    "additionalProperties": False,
}


def chat(client: openai.OpenAI, messages: Any = None, **options: Any) -> Any:
    options = {"model": MODEL, "max_completion_tokens": 8, **options}
    return client.chat.completions.create(messages=messages or APPLES, **options)


def text(reply: Any) -> str:
    return str(reply.choices[0].message.content)


def refusal(client: openai.OpenAI, messages: Any = None, **options: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        chat(client, messages, **options)
    body = caught.value.body
    assert isinstance(body, dict) and set(body) == {"message", "type", "param", "code"}
    return caught.value


@pytest.fixture(scope="module")
def plain(client: openai.OpenAI) -> Any:
    """What greedy decoding says of apples."""
    return chat(client)


class TestModels:
    def test_lists_the_base_and_every_adapter_as_model_ids(self, client: openai.OpenAI) -> None:
        ids = [model.id for model in client.models.list()]
        assert ids == [MODEL, f"{MODEL}:base", f"{MODEL}:recovery", f"{MODEL}:shifted"]

    def test_retrieves_one(self, client: openai.OpenAI) -> None:
        model = client.models.retrieve(f"{MODEL}:shifted")
        assert model.id == f"{MODEL}:shifted" and model.object == "model"

    def test_says_that_an_unknown_one_does_not_exist(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("gpt-5")
        assert caught.value.code == "model_not_found"


class TestChat:
    def test_answers(self, plain: Any) -> None:
        assert plain.object == "chat.completion" and plain.id.startswith("chatcmpl-")
        assert len(plain.choices) == 1
        choice = plain.choices[0]
        assert choice.message.role == "assistant" and choice.message.content and choice.index == 0
        assert plain.model == MODEL

    def test_counts_tokens(self, plain: Any) -> None:
        usage = plain.usage
        assert usage.completion_tokens == 8 and usage.prompt_tokens > 8
        assert usage.total_tokens == usage.prompt_tokens + 8

    def test_tells_timings_and_the_adapter(self, plain: Any) -> None:
        extra = plain.model_extra
        assert extra["adapter"] == "recovery" and extra["adapter_version"] == 1
        assert extra["timings"]["decode_tokens_per_second"] > 0
        assert extra["timings"]["first_token_seconds"] > 0

    def test_stops_at_the_limit_and_says_so(self, client: openai.OpenAI) -> None:
        reply = chat(client, max_completion_tokens=2)
        assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 2

    def test_takes_the_older_name_of_the_limit(self, client: openai.OpenAI) -> None:
        options: dict[str, Any] = {"model": MODEL, "messages": APPLES, "max_tokens": 2}
        assert client.chat.completions.create(**options).usage.completion_tokens == 2  # type: ignore[union-attr]

    def test_ends_by_itself(self, client: openai.OpenAI) -> None:
        reply = chat(client, [{"role": "user", "content": "Say yes."}], max_completion_tokens=100)
        assert reply.choices[0].finish_reason == "stop"

    def test_finds_the_prompt_of_the_request_before_in_the_prefix_cache(self, client: openai.OpenAI) -> None:
        chat(client)
        assert chat(client).usage.prompt_tokens_details.cached_tokens >= 16

    def test_minds_the_system_message_and_the_developers(self, client: openai.OpenAI) -> None:
        system = [{"role": "system", "content": "Answer in French."}, *APPLES]
        developer = [{"role": "developer", "content": "Answer in French."}, *APPLES]
        assert text(chat(client, system)) == text(chat(client, developer))
        assert chat(client, system).usage.prompt_tokens != chat(client).usage.prompt_tokens

    def test_takes_text_in_parts(self, client: openai.OpenAI, plain: Any) -> None:
        parts = [{"type": "text", "text": "Name three "}, {"type": "text", "text": "apples."}]
        assert text(chat(client, [{"role": "user", "content": parts}])) == text(plain)

    def test_goes_on_with_a_conversation(self, client: openai.OpenAI, plain: Any) -> None:
        said = plain.choices[0].message
        more = [*APPLES, said, {"role": "user", "content": "Another one."}]
        assert chat(client, more).usage.prompt_tokens > plain.usage.prompt_tokens + 8

    def test_a_control_token_in_a_message_is_plain_text(self, client: openai.OpenAI) -> None:
        spelled = [{"role": "user", "content": "<|im_end|>"}]
        assert (
            chat(client, spelled).usage.prompt_tokens
            > chat(client, [{"role": "user", "content": "x"}]).usage.prompt_tokens + 3
        )

    def test_works_with_the_asynchronous_client(self, real_server: Running, plain: Any) -> None:
        async def ask() -> list[Any]:
            async with openai.AsyncOpenAI(base_url=f"{real_server.url}/v1", api_key="none") as client:
                one = chat(client)  # type: ignore[arg-type]
                two = chat(client, model=f"{MODEL}:shifted")  # type: ignore[arg-type]
                return list(await asyncio.wait_for(asyncio.gather(one, two), WAIT))

        first, second = asyncio.run(ask())
        assert text(first) == text(plain) != text(second)

    def test_every_reply_has_a_request_id(self, plain: Any) -> None:
        assert plain._request_id.startswith("req_")


class TestAdapters:
    def test_the_base_id_runs_the_default_adapter(self, client: openai.OpenAI, plain: Any) -> None:
        reply = chat(client, model=f"{MODEL}:recovery")
        assert text(reply) == text(plain) and reply.model == f"{MODEL}:recovery"

    def test_base_runs_none(self, client: openai.OpenAI) -> None:
        assert chat(client, model=f"{MODEL}:base").model_extra["adapter"] is None

    def test_an_adapter_changes_the_answer(self, client: openai.OpenAI, plain: Any) -> None:
        reply = chat(client, model=f"{MODEL}:shifted")
        assert reply.model_extra["adapter"] == "shifted" and text(reply) != text(plain)

    @pytest.mark.parametrize(
        "model", ["gpt-5", f"{MODEL}:none", f"{MODEL}:", "", ":shifted", f"{MODEL}:../shifted"]
    )
    def test_an_unknown_model_is_named_as_the_fault(self, client: openai.OpenAI, model: str) -> None:
        error = refusal(client, model=model)
        assert error.status_code in (400, 404) and error.param == "model"


class TestStreaming:
    def test_the_pieces_are_the_whole_answer(self, client: openai.OpenAI, plain: Any) -> None:
        chunks = list(chat(client, stream=True))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text(plain)
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
        assert len({chunk.id for chunk in chunks}) == 1
        assert len(chunks) > 4  # they come as they are made

    def test_the_last_piece_tells_timings(self, client: openai.OpenAI) -> None:
        *_, last = chat(client, stream=True)
        assert last.model_extra["timings"]["decode_seconds"] > 0 and last.model_extra["adapter"] == "recovery"

    def test_usage_comes_when_it_is_asked_for(self, client: openai.OpenAI, plain: Any) -> None:
        *chunks, last = chat(client, stream=True, stream_options={"include_usage": True})
        assert all(chunk.usage is None and chunk.choices for chunk in chunks)
        assert last.choices == []
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (plain.usage.prompt_tokens, 8)

    def test_no_usage_otherwise(self, client: openai.OpenAI) -> None:
        assert all(chunk.choices for chunk in chat(client, stream=True))

    def test_several_choices_are_told_apart(self, client: openai.OpenAI) -> None:
        texts = {0: "", 1: ""}
        for chunk in chat(client, stream=True, n=2, temperature=1.0, seed=3):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        whole = chat(client, n=2, temperature=1.0, seed=3)
        assert [texts[0], texts[1]] == [choice.message.content for choice in whole.choices]

    def test_the_clients_own_helper_reads_it(self, client: openai.OpenAI, plain: Any) -> None:
        options: Any = {"model": MODEL, "messages": APPLES, "max_completion_tokens": 8, "stop": [" "]}
        with client.chat.completions.stream(**options) as stream:
            contents = [event.delta for event in stream if event.type == "content.delta"]
            final = stream.get_final_completion()
        assert "".join(contents) == text(final) == text(plain).split(" ")[0]

    def test_can_be_left_before_its_end(self, client: openai.OpenAI, real_server: Running) -> None:
        with chat(client, stream=True, max_completion_tokens=2000) as stream:
            next(iter(stream))
        until(real_server.idle)


class TestSampling:
    def test_greedy_is_the_default(self, client: openai.OpenAI, plain: Any) -> None:
        assert text(chat(client)) == text(chat(client, temperature=0)) == text(plain)

    def test_a_seed_repeats_a_draw(self, client: openai.OpenAI) -> None:
        one, two, other = (text(chat(client, temperature=1.5, seed=seed)) for seed in (-7, -7, 8))
        assert one == two != other

    def test_without_a_seed_draws_differ(self, client: openai.OpenAI) -> None:
        assert len({text(chat(client, temperature=2.0)) for _ in range(3)}) > 1

    def test_a_narrow_nucleus_is_greedy(self, client: openai.OpenAI, plain: Any) -> None:
        assert text(chat(client, temperature=1.0, top_p=0.0001)) == text(plain)

    def test_our_own_filters_are_extra_fields(self, client: openai.OpenAI, plain: Any) -> None:
        one = chat(client, temperature=1.0, extra_body={"top_k": 1})
        two = chat(client, temperature=1.0, extra_body={"min_p": 1.0})
        assert text(one) == text(two) == text(plain)
        assert text(chat(client, extra_body={"repetition_penalty": 50.0})) != text(plain)

    def test_several_choices(self, client: openai.OpenAI) -> None:
        reply = chat(client, n=3, temperature=1.5, seed=1)
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        assert len({choice.message.content for choice in reply.choices}) == 3
        assert reply.usage.completion_tokens <= 24

    def test_a_bias_forbids_a_token(self, client: openai.OpenAI, real_server: Running, plain: Any) -> None:
        first = real_server.state.model.tokenizer.encode(text(plain))[0]
        reply = chat(client, logit_bias={str(first): -100})
        assert real_server.state.model.tokenizer.encode(text(reply))[0] != first

    def test_a_bias_forces_a_token(self, client: openai.OpenAI, real_server: Running) -> None:
        token = real_server.state.model.tokenizer.encode(" banana")[0]
        reply = chat(client, logit_bias={token: 100}, max_completion_tokens=3)
        assert text(reply) == " banana" * 3

    def test_penalties_end_a_repetition(self, client: openai.OpenAI, real_server: Running) -> None:
        token = real_server.state.model.tokenizer.encode(" banana")[0]
        forced = {"logit_bias": {token: 10}, "max_completion_tokens": 12}
        plain, frequency = chat(client, **forced), chat(client, **forced, frequency_penalty=2.0)
        presence = chat(client, **forced, presence_penalty=2.0)
        counts = [text(reply).count(" banana") for reply in (plain, frequency, presence)]
        assert counts[0] > counts[1] and counts[0] >= counts[2]

    @pytest.mark.parametrize("stop", [" ", [" ", "\n"]])
    def test_ends_before_a_stop_text(self, client: openai.OpenAI, plain: Any, stop: Any) -> None:
        reply = chat(client, stop=stop)
        assert text(reply) == text(plain).split(" ")[0].split("\n")[0]
        assert reply.choices[0].finish_reason == "stop"

    def test_a_stream_shows_nothing_of_a_stop_text(self, client: openai.OpenAI, plain: Any) -> None:
        said = text(plain)
        stop = said[3:7]  # in the middle of tokens, over more than one
        pieces = [chunk.choices[0].delta.content or "" for chunk in chat(client, stop=stop, stream=True)]
        assert "".join(pieces) == said[: said.index(stop)]


class TestLogprobs:
    def test_of_the_chosen_tokens(self, client: openai.OpenAI, real_server: Running) -> None:
        reply = chat(client, logprobs=True, top_logprobs=3)
        content = reply.choices[0].logprobs.content
        assert "".join(token.token for token in content) == text(reply) and len(content) == 8
        for token in content:
            assert len(token.top_logprobs) == 3
            assert token.logprob == token.top_logprobs[0].logprob <= 0  # greedy: the likeliest
            assert bytes(token.bytes).decode() == token.token
        model = real_server.state.model
        ids = model.render(APPLES)
        new = model.tokenizer.encode(text(reply))
        scores = model.engine.score([*ids, *new], model.adapters.acquire("recovery"))[len(ids) - 1 :]
        assert [token.logprob for token in content] == pytest.approx(list(scores), abs=1e-5)

    def test_in_a_stream_each_token_once(self, client: openai.OpenAI) -> None:
        whole = chat(client, logprobs=True).choices[0].logprobs.content
        told: list[Any] = []
        for chunk in chat(client, logprobs=True, stream=True):
            if chunk.choices[0].logprobs:
                told += chunk.choices[0].logprobs.content
        assert [(one.token, one.logprob) for one in told] == [(one.token, one.logprob) for one in whole]

    def test_none_unless_asked_for(self, plain: Any) -> None:
        assert plain.choices[0].logprobs is None

    def test_of_a_guided_answer_every_token(self, client: openai.OpenAI) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": TICKET}}
        reply = chat(client, response_format=form, logprobs=True, max_completion_tokens=60)
        content = reply.choices[0].logprobs.content
        assert "".join(token.token for token in content).startswith(text(reply))
        assert all(math.isfinite(token.logprob) for token in content)


class TestResponseFormat:
    def test_obeys_a_schema(self, client: openai.OpenAI) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": TICKET, "strict": True}}
        value = json.loads(text(chat(client, response_format=form, max_completion_tokens=60)))
        assert set(value) == {"title", "priority", "count"} and value["priority"] in ("low", "high")

    def test_gives_an_object(self, client: openai.OpenAI) -> None:
        reply = chat(client, response_format={"type": "json_object"}, max_completion_tokens=60)
        assert isinstance(json.loads(text(reply)), dict)

    def test_parses_into_a_pydantic_class(self, client: openai.OpenAI) -> None:
        class Answer(pydantic.BaseModel):
            kind: Literal["fruit", "vegetable"]
            red: bool

        reply = client.chat.completions.parse(
            model=MODEL, messages=APPLES, response_format=Answer, max_completion_tokens=40
        )
        assert isinstance(reply.choices[0].message.parsed, Answer)

    def test_streams_what_obeys_the_schema(self, client: openai.OpenAI) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": TICKET}}
        chunks = chat(client, response_format=form, max_completion_tokens=60, stream=True)
        value = json.loads("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
        assert value["count"] in range(10)

    def test_plain_text_is_a_form_too(self, client: openai.OpenAI, plain: Any) -> None:
        assert text(chat(client, response_format={"type": "text"})) == text(plain)

    def test_names_what_it_cannot_obey(self, client: openai.OpenAI) -> None:
        schema = {"type": "string", "pattern": "(?=a)b"}
        error = refusal(
            client, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        )
        assert error.status_code == 400 and "pattern" in str(error)


class TestTools:
    def test_calls_one_that_is_demanded(self, client: openai.OpenAI) -> None:
        reply = chat(client, tools=[WEATHER, TIME], tool_choice="required", max_completion_tokens=80)
        choice = reply.choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
        for call in choice.message.tool_calls:
            assert call.function.name in ("get_weather", "get_time")
            json.loads(call.function.arguments)

    def test_calls_the_one_that_is_named(self, client: openai.OpenAI) -> None:
        named = {"type": "function", "function": {"name": "get_time"}}
        reply = chat(
            client,
            tools=[WEATHER, TIME],
            tool_choice=named,
            max_completion_tokens=80,
            parallel_tool_calls=False,
        )
        [call] = reply.choices[0].message.tool_calls
        assert call.function.name == "get_time" and json.loads(call.function.arguments) == {}

    def test_calls_once_where_parallel_calls_are_off(self, client: openai.OpenAI) -> None:
        reply = chat(
            client,
            tools=[WEATHER],
            tool_choice="required",
            parallel_tool_calls=False,
            max_completion_tokens=80,
        )
        assert len(reply.choices[0].message.tool_calls) == 1

    def test_calls_none_where_none_is_allowed(self, client: openai.OpenAI) -> None:
        reply = chat(client, tools=[WEATHER], tool_choice="none")
        assert reply.choices[0].message.tool_calls is None and text(reply)

    def test_streams_a_call(self, client: openai.OpenAI) -> None:
        chunks = list(
            chat(
                client,
                tools=[TIME],
                tool_choice="required",
                stream=True,
                parallel_tool_calls=False,
                max_completion_tokens=60,
            )
        )
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        assert calls[0].index == 0 and calls[0].function.name == "get_time" and calls[0].id
        assert chunks[-1].choices[0].finish_reason == "tool_calls"

    def test_takes_the_tools_results(self, client: openai.OpenAI) -> None:
        call = {
            "id": "call00001",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Oslo", "unit": "C"}'},
        }
        messages = [
            {"role": "user", "content": "Weather in Oslo?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call00001", "content": "Rain, 7 degrees."},
        ]
        assert text(chat(client, messages, tools=[WEATHER], tool_choice="none"))

    def test_a_result_without_its_call_is_refused(self, client: openai.OpenAI) -> None:
        error = refusal(client, [*APPLES, {"role": "tool", "tool_call_id": "x", "content": "y"}])
        assert error.status_code == 400 and error.param == "messages[1].tool_call_id"

    def test_a_call_without_its_result_is_refused(self, client: openai.OpenAI) -> None:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        error = refusal(client, [*APPLES, {"role": "assistant", "tool_calls": [call]}])
        assert error.status_code == 400 and error.param == "messages"

    def test_a_choice_that_is_no_tool_is_refused(self, client: openai.OpenAI) -> None:
        named = {"type": "function", "function": {"name": "nothing"}}
        assert refusal(client, tools=[TIME], tool_choice=named).param == "tool_choice"


class TestCompletions:
    def test_continues_a_text(self, client: openai.OpenAI) -> None:
        reply = client.completions.create(model=MODEL, prompt="One, two, three,", max_tokens=4)
        assert reply.object == "text_completion" and "four" in reply.choices[0].text

    def test_continues_several(self, client: openai.OpenAI) -> None:
        prompts = ["One, two, three,", "Monday, Tuesday,"]
        reply = client.completions.create(model=MODEL, prompt=prompts, max_tokens=3)
        alone = [client.completions.create(model=MODEL, prompt=one, max_tokens=3) for one in prompts]
        assert [choice.index for choice in reply.choices] == [0, 1]
        assert [choice.text for choice in reply.choices] == [one.choices[0].text for one in alone]
        assert reply.usage and reply.usage.prompt_tokens == sum(
            one.usage.prompt_tokens for one in alone if one.usage
        )

    def test_takes_token_ids(self, client: openai.OpenAI, real_server: Running) -> None:
        ids = real_server.state.model.tokenizer.encode("One, two, three,")
        one = client.completions.create(model=MODEL, prompt=ids, max_tokens=4)
        assert "four" in one.choices[0].text

    def test_streams(self, client: openai.OpenAI) -> None:
        whole = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=6)
        chunks = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=6, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text

    def test_tells_log_probabilities(self, client: openai.OpenAI) -> None:
        choice = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=4, logprobs=2).choices[
            0
        ]
        assert choice.logprobs and "".join(choice.logprobs.tokens or ()) == choice.text
        assert [len(top) for top in choice.logprobs.top_logprobs or ()] == [2] * 4
        assert (choice.logprobs.text_offset or ())[0] == 0

    def test_refuses_what_it_does_not_have(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=MODEL, prompt="x", suffix="y")
        assert (caught.value.param, caught.value.code) == ("suffix", "unsupported_parameter")


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "param", "code"),
        [
            ({"audio": {}}, "audio", "unsupported_parameter"),
            ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
            ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
            ({"functions": []}, "functions", "unsupported_parameter"),
            ({"nonsense": 1}, "nonsense", "unknown_parameter"),
            ({"temperature": 3}, "temperature", "invalid_value"),
            ({"temperature": "1"}, "temperature", "invalid_value"),
            ({"top_p": -1}, "top_p", "invalid_value"),
            ({"n": 0}, "n", "invalid_value"),
            ({"n": 100}, "n", None),
            ({"stop": ""}, "stop", "invalid_value"),
            ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
            ({"logit_bias": {"60000": 1}}, "logit_bias", None),
            ({"top_logprobs": 2}, "top_logprobs", None),
            ({"store": True}, "store", "invalid_value"),
            ({"tool_choice": "auto"}, "tool_choice", None),
            ({"stream_options": {"include_usage": True}}, None, "invalid_value"),
            ({"response_format": {"type": "xml"}}, "response_format", "invalid_value"),
            ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
            ({"max_completion_tokens": 9000}, "messages", "context_length_exceeded"),
        ],
    )
    def test_names_the_field(
        self, client: openai.OpenAI, options: Any, param: str | None, code: str | None
    ) -> None:
        error = refusal(client, extra_body=options)
        assert isinstance(error, openai.BadRequestError)
        assert (error.param, error.code) == (param, code)

    @pytest.mark.parametrize(
        ("messages", "param"),
        [
            ([{"role": "king", "content": "x"}], "messages[0]"),
            ([{"role": "user"}], "messages[0].content"),
            ([{"role": "user", "content": 5}], "messages[0].content"),
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
                "messages[0].content[0].type",
            ),
            ([{"role": "assistant"}], "messages[0]"),
        ],
    )
    def test_names_the_message(self, client: openai.OpenAI, messages: Any, param: str) -> None:
        error = refusal(client, messages)
        assert error.status_code == 400 and error.param == param

    def test_a_prompt_that_is_too_long(self, client: openai.OpenAI) -> None:
        error = refusal(client, [{"role": "user", "content": "apple " * 9000}])
        assert error.status_code == 400 and error.code == "context_length_exceeded"

    def test_a_missing_field(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.post("/chat/completions", body={"model": MODEL}, cast_to=object)
        assert (caught.value.param, caught.value.code) == ("messages", "missing_required_parameter")

    def test_what_there_is_not(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model=MODEL, input="x", encoding_format="float")
