"""RemoteModel: the interface of Model over any server that speaks OpenAI's chat completions.

    model = RemoteModel(base_url="http://127.0.0.1:8000/v1", model="afm-server")
    reply = model.session(tools=[get_weather]).respond("Is it raining in Oslo?", schema=Weather)

A conversation is sent whole with every turn, to `base_url` and nowhere else. What the protocol cannot express
(a regular expression, a grammar, top_k, ...) is refused by name before anything is sent.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pomona.errors import PomonaError
from pomona.runtime.backend import Backend, Generation, LanguageModel, Outcome, Prepared
from pomona.runtime.dialects import chat_messages
from pomona.runtime.output import Output
from pomona.runtime.remote_answer import CHOICE, RemoteAnswer
from pomona.runtime.remote_http import Address
from pomona.runtime.sampling import Sampling
from pomona.runtime.transcript import Entry


class RemoteModel(LanguageModel):
    """A model on a server.

    base_url: up to and with /v1. model: its name there. An adapter is another model's name there, as in vLLM
    and in pomona's own server. timeout: seconds without a byte. max_retries: after status 429 and 503, with
    growing pauses, or as the server asks by Retry-After. extra_body: further fields for every request that
    this server knows ({"top_k": 20}).
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 3,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise PomonaError("model: must be a model's name on the server")
        if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout < 1e6:
            raise PomonaError(f"timeout = {timeout}: must be a number of seconds above 0")
        if not isinstance(max_retries, int) or isinstance(max_retries, bool) or not 0 <= max_retries <= 100:
            raise PomonaError(f"max_retries = {max_retries}: must lie in 0 .. 100")
        if api_key is not None and not (
            isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()
        ):
            raise PomonaError("api_key: must be a text of printable ASCII characters")
        self.model = model
        self.extra_body = dict(extra_body or {})
        self.address = Address(base_url, api_key=api_key, timeout=timeout, max_retries=max_retries)

    def __repr__(self) -> str:
        return f"RemoteModel({self.address.base_url!r}, {self.model!r})"

    def backend(self) -> Backend[Any]:
        return RemoteBackend(self)

    def close(self) -> None:
        self.address.close()


@dataclass(frozen=True)
class RemotePrompt(Prepared):
    """A generation as the body of a request."""

    payload: dict[str, Any] = field(default_factory=dict)
    validator: Any = None  # jsonschema's, of a schema that was given as a dict


class RemoteBackend(Backend[RemotePrompt]):
    knows_context = False

    def __init__(self, model: RemoteModel) -> None:
        self.model = model

    def prepare(self, generation: Generation) -> RemotePrompt:
        output = generation.output
        payload: dict[str, Any] = {
            "model": generation.adapter or self.model.model,
            "messages": [message for entry in generation.entries for message in _messages(entry)],
            "max_tokens": generation.max_new_tokens,
            **_sampling(generation.sampling),
        }
        if generation.tools:
            payload["tools"] = [tool.definition for tool in generation.tools]
            payload["tool_choice"] = _tool_choice(generation.tool_choice)
        if output.kind != "text":
            payload["response_format"] = _response_format(output)
        if generation.streaming:
            payload |= {"stream": True, "stream_options": {"include_usage": True}}
        taken = ", ".join(self.model.extra_body.keys() & payload.keys())
        if taken:
            raise PomonaError(f"extra_body: {taken} is set by the session; leave it out")
        payload |= self.model.extra_body
        validator = _validator(output.schema) if output.schema is not None and output.python is None else None
        return RemotePrompt(generation, payload=payload, validator=validator)

    def generate(self, prepared: RemotePrompt) -> Iterator[str | Outcome]:
        answer = RemoteAnswer(prepared.generation, prepared.validator, self.model.address.base_url)
        if prepared.generation.streaming:
            with contextlib.closing(self.model.address.events(prepared.payload)) as events:
                for event in events:
                    if piece := answer.chunk(event):
                        yield piece
        else:
            answer.whole(self.model.address.post(prepared.payload))
        yield from answer.end()

    async def agenerate(self, prepared: RemotePrompt) -> AsyncIterator[str | Outcome]:
        answer = RemoteAnswer(prepared.generation, prepared.validator, self.model.address.base_url)
        if prepared.generation.streaming:
            async with contextlib.aclosing(self.model.address.aevents(prepared.payload)) as events:
                async for event in events:
                    if piece := answer.chunk(event):
                        yield piece
        else:
            answer.whole(await self.model.address.apost(prepared.payload))
        for last in answer.end():
            yield last


def _messages(entry: Entry) -> list[dict[str, Any]]:
    """In OpenAI's form: arguments are texts, and a message with calls and no words has no content."""
    messages = chat_messages([entry])
    for message in messages:
        message.pop("name", None)
        if "tool_calls" in message:
            message["content"] = message["content"] or None
            for call in message["tool_calls"]:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return messages


def _sampling(sampling: Sampling) -> dict[str, Any]:
    plain = Sampling()
    for name in ("top_k", "min_p", "repetition_penalty"):
        if getattr(sampling, name) != getattr(plain, name):
            raise PomonaError(
                f"sampling: {name} is not in the protocol; if this server knows it, give it in extra_body"
            )
    fields: dict[str, Any] = {"temperature": sampling.temperature}
    if sampling.top_p != plain.top_p:
        fields["top_p"] = sampling.top_p
    if sampling.temperature > 0:
        fields["seed"] = sampling.seed
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(sampling, name) != getattr(plain, name):
            fields[name] = getattr(sampling, name)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    return fields


def _tool_choice(choice: str) -> Any:
    if choice in ("auto", "required", "none"):
        return choice
    return {"type": "function", "function": {"name": choice}}


def _response_format(output: Output) -> dict[str, Any]:
    if output.kind in ("regex", "grammar"):
        raise PomonaError(
            f"{output.kind}: the protocol cannot express it; use schema or choices, or a local model"
        )
    schema = output.schema
    if output.kind == "choices":
        schema = {
            "type": "object",
            "properties": {CHOICE: {"type": "string", "enum": list(output.options)}},
            "required": [CHOICE],
            "additionalProperties": False,
        }
    assert schema is not None
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": _strict(schema)},
    }


def _strict(schema: Any) -> bool:
    """Whether every object in it is closed and needs all its keys: OpenAI enforces only such. What comes
    is validated here in any case."""
    if isinstance(schema, list):
        return all(_strict(item) for item in schema)
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if isinstance(properties, dict) and "type" in schema:
        closed = schema.get("additionalProperties") is False
        if not closed or set(schema.get("required", ())) != set(properties):
            return False
    return all(_strict(value) for value in schema.values())


def _validator(schema: dict[str, Any]) -> Any:
    import jsonschema  # type: ignore[import-untyped]

    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise PomonaError(f"schema: is no JSON schema ({error.message}); mend it") from error
    return kind(schema)
