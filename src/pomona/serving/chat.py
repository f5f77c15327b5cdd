"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from pomona.errors import PomonaError
from pomona.runtime.dialects import MAX_CALLS
from pomona.serving.answering import (
    INLINE_CHARACTERS,
    Choice,
    Ending,
    Job,
    check_choices,
    deadline_of,
    room_for,
    sampling_of,
    submitted,
)
from pomona.serving.chat_request import ChatRequest, FunctionCall
from pomona.serving.conversation import calls_in, entries_of, output_of, said_in, text_of, tools_of
from pomona.serving.errors import RESPONSES, ApiError, refused
from pomona.serving.guarding import guard_fields
from pomona.serving.logprobs import ChatLogprobs, chat_logprobs
from pomona.serving.reply import Base, call_json, reply_fields
from pomona.serving.state import ServerState, state_of
from pomona.serving.streaming import COMPACT, ChunkStream, whole

router = APIRouter()


class ReplyCall(BaseModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


class ReplyMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ReplyCall] | None = None


class ReplyChoice(BaseModel):
    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]


class ChatReply(Base):
    object: Literal["chat.completion"]
    choices: list[ReplyChoice]


@router.post(
    "/v1/chat/completions",
    responses={200: {"model": ChatReply, "content": {"text/event-stream": {}}}, **RESPONSES},
)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answers a conversation, whole or as a stream of server-sent events (`stream`)."""
    state = state_of(request)
    state.check_open()
    characters = sum(len(text_of(message.content or "")) for message in body.messages)
    if characters < INLINE_CHARACTERS and not body.tools:
        job = job_of(body, state)
    else:
        job = await asyncio.to_thread(job_of, body, state)
    choices = await submitted(state, job)
    if body.stream:
        return _ChatStream(request, state, job, choices).response()
    endings = await whole(request, job, choices)
    reply = reply_fields(state, job, "chatcmpl", "chat.completion", endings)
    pairs = zip(choices, endings, strict=True)
    reply["choices"] = [_choice_json(state, choice, ending) for choice, ending in pairs]
    reply |= guard_fields([choice.refused for choice in choices if choice.refused])
    return JSONResponse(reply)


def job_of(body: ChatRequest, state: ServerState) -> Job:
    """ApiError, with the field's name, for what cannot be done."""
    adapter = state.adapter_of(body.model)
    number = check_choices(body, state)
    entries = entries_of(body.messages)
    tools, tool_choice = tools_of(body, state.settings)
    output = output_of(body.response_format, state.settings)
    dialect = state.model.dialect
    try:
        most = 1 if body.parallel_tool_calls is False else MAX_CALLS
        guide = dialect.guide(tools, tool_choice, output, max_calls=most)
        messages, shown = dialect.messages(entries, tools if tool_choice != "none" else ())
        ids = state.model.render(messages, tools=shown)
    except PomonaError as error:
        raise refused(error, param="messages") from error
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    asked = body.max_completion_tokens or body.max_tokens
    return Job(
        body.model,
        adapter,
        tuple(ids),
        sampling_of(body, state),
        room_for(len(ids), asked, state, param="messages"),
        deadline_of(body, state),
        number,
        body.stop_texts,
        guide,
        tools,
        tool_choice,
        calls_in(entries),
        body.includes_usage,
        (body.top_logprobs or 0) if body.logprobs else None,
        said_in(entries),
    )


def _choice_json(state: ServerState, choice: Choice, ending: Ending) -> dict[str, Any]:
    text = choice.text
    told = None if choice.refused is None else choice.refused.message
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": told}
    if ending.calls:
        message["content"] = text.rstrip("\n") or None
        message["tool_calls"] = [call_json(call) for call in ending.calls]
    return {
        "index": choice.index,
        "message": message,
        "logprobs": chat_logprobs(state.model.tokenizer, choice),
        "finish_reason": ending.finish_reason,
    }


class _ChatStream(ChunkStream):
    prefix, object_name = "chatcmpl", "chat.completion.chunk"

    def words(self, choice: Choice, text: str, first: bool) -> str:
        role = '"role":"assistant",' if first else ""
        return self._choice(choice, f'{{{role}"content":{quoted(text)}}}', "null")

    def ending(self, choice: Choice, ending: Ending) -> Iterable[str]:
        if ending.calls:
            calls = [{"index": number, **call_json(call)} for number, call in enumerate(ending.calls)]
            yield self._choice(choice, json.dumps({"tool_calls": calls}, separators=COMPACT), "null")
        if choice.refused is not None:
            told = json.dumps({"refusal": choice.refused.message}, separators=COMPACT)
            yield self._choice(choice, told, "null")
        yield self._choice(choice, "{}", f'"{ending.finish_reason}"')

    def _choice(self, choice: Choice, delta: str, reason: str) -> str:
        logprobs = "null"
        if self.job.logprobs is not None:
            told = chat_logprobs(self.state.model.tokenizer, choice)
            logprobs = json.dumps(told, separators=COMPACT)
        return f'{{"index":{choice.index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}}}'
