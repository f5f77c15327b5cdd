"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from pomona.errors import PomonaError
from pomona.serving.answering import (
    INLINE_CHARACTERS,
    Choice,
    Ending,
    Job,
    check_choices,
    deadline_of,
    read_to_end,
    room_for,
    sampling_of,
    submitted,
)
from pomona.serving.chat_request import ChatRequest, FunctionCall
from pomona.serving.conversation import calls_in, entries_of, output_of, text_of, tools_of
from pomona.serving.errors import RESPONSES, refused
from pomona.serving.event_stream import DONE, EventStream, Write, unless_gone
from pomona.serving.reply import Base, ChunkWriter, call_json, cancel_all, note_endings, quoted, reply_fields
from pomona.serving.state import ServerState, state_of

router = APIRouter()


class ReplyCall(BaseModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


class ReplyMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ReplyCall] | None = None


class ReplyChoice(BaseModel):
    index: int
    message: ReplyMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


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
    if sum(len(text_of(message.content or "")) for message in body.messages) < INLINE_CHARACTERS:
        job = job_of(body, state)
    else:
        job = await asyncio.to_thread(job_of, body, state)
    choices = await submitted(state, job)
    if body.stream:
        stream = _Stream(state, job, choices, with_usage=body.includes_usage)
        return EventStream(
            stream.write, abandon=lambda: cancel_all(choices), stall_seconds=state.settings.stall_seconds
        )
    try:
        endings = await unless_gone(request.receive, _all(choices))
    except BaseException:
        cancel_all(choices)
        raise
    note_endings(state, job, endings)
    reply = reply_fields(state, job, "chatcmpl", "chat.completion", endings)
    reply["choices"] = [_choice_json(choice, ending) for choice, ending in zip(choices, endings, strict=True)]
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
        guide = dialect.guide(tools, tool_choice, output)
        messages, shown = dialect.messages(entries, tools if tool_choice != "none" else ())
        ids = state.model.render(messages, tools=shown)
    except PomonaError as error:
        raise refused(error, param="messages") from error
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
    )


async def _all(choices: list[Choice]) -> list[Ending]:
    if len(choices) == 1:
        return [await read_to_end(choices[0])]
    return list(await asyncio.gather(*(read_to_end(choice) for choice in choices)))


def _choice_json(choice: Choice, ending: Ending) -> dict[str, Any]:
    text = choice.text
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if ending.calls:
        message["content"] = text.rstrip("\n") or None
        message["tool_calls"] = [call_json(call) for call in ending.calls]
    return {
        "index": choice.index,
        "message": message,
        "logprobs": None,
        "finish_reason": ending.finish_reason,
    }


class _Stream:
    """Writes the chunks of one reply."""

    def __init__(self, state: ServerState, job: Job, choices: list[Choice], *, with_usage: bool) -> None:
        self._state, self._job, self._choices, self._with_usage = state, job, choices, with_usage
        self._chunks = ChunkWriter(state, job, "chatcmpl", "chat.completion.chunk", with_usage=with_usage)

    async def write(self, write: Write) -> None:
        if len(self._choices) == 1:
            endings = [await self._one(self._choices[0], write)]
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(choice, write)) for choice in self._choices]
            endings = [task.result() for task in tasks]
        note_endings(self._state, self._job, endings)
        await write((self._chunks.usage(endings) if self._with_usage else b"") + DONE)

    async def _one(self, choice: Choice, write: Write) -> Ending:
        before = f'{{"index":{choice.index},"delta":{{"content":'
        after = '},"logprobs":null,"finish_reason":null}'
        lead = f'{{"index":{choice.index},"delta":{{"role":"assistant","content":'
        chunk, more = self._chunks.chunk, choice.ticket.more
        while new := await more(choice.read):
            if words := choice.push(new):
                await write(chunk(f"{lead}{quoted(words)}{after}"))
                lead = before
            if choice.stopped:
                choice.ticket.cancel()
                break
        await choice.ticket.ended()
        ending = choice.end()
        if ending.words or lead is not before:
            await write(chunk(f"{lead}{quoted(ending.words)}{after}"))
        if ending.calls:
            calls = [{"index": number, **call_json(call)} for number, call in enumerate(ending.calls)]
            delta = json.dumps({"tool_calls": calls}, separators=(",", ":"))
            await write(
                chunk(f'{{"index":{choice.index},"delta":{delta},"logprobs":null,"finish_reason":null}}')
            )
        reason = ending.finish_reason
        last = f'{{"index":{choice.index},"delta":{{}},"logprobs":null,"finish_reason":"{reason}"}}'
        await write(self._chunks.last_of(last, ending))
        return ending
