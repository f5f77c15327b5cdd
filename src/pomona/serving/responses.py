"""POST /v1/responses: the same answers in the shape of OpenAI's newer interface, without its storage."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from pomona.runtime.transcript import ToolCall
from pomona.serving.answering import Choice, Ending, Job, cancel_all, submitted
from pomona.serving.chat import job_of
from pomona.serving.errors import RESPONSES, ApiError
from pomona.serving.event_stream import EventStream, Write, event
from pomona.serving.guarding import FILTERED, guard_fields
from pomona.serving.reply import adapter_fields, call_json, note_endings, timings, usage
from pomona.serving.responses_request import ResponsesRequest, chat_of
from pomona.serving.state import state_of
from pomona.serving.streaming import whole

router = APIRouter()


class ResponseReply(BaseModel):
    """The fields of ours and the outline of OpenAI's; `output` holds messages and function calls."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    adapter: str | None
    adapter_version: int | None
    timings: dict[str, float] | None


@router.post(
    "/v1/responses",
    responses={200: {"model": ResponseReply, "content": {"text/event-stream": {}}}, **RESPONSES},
)
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """Answers an input, whole or as a stream of server-sent events (`stream`)."""
    state = state_of(request)
    state.check_open()
    job = await asyncio.to_thread(lambda: job_of(chat_of(body), state))
    [choice] = await submitted(state, job)
    reply = _Reply(body, job)
    if not body.stream:
        [ending] = await whole(request, job, [choice])
        return JSONResponse(reply.ended(choice, ending))
    return EventStream(
        _Stream(request, reply, job, choice).write,
        abandon=lambda: cancel_all([choice]),
        stall_seconds=state.settings.stall_seconds,
    )


class _Reply:
    """The response object, at its beginning and at its end."""

    def __init__(self, body: ResponsesRequest, job: Job) -> None:
        asked = body.model_dump(mode="json", by_alias=True)
        self._job = job
        self.message_id = f"msg_{secrets.token_hex(12)}"
        self.begun: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(12)}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": job.sampling.temperature,
            "text": asked["text"] or {"format": {"type": "text"}},
            "tool_choice": asked["tool_choice"] or "auto",
            "tools": asked["tools"] or [],
            "top_p": job.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
            "timings": None,
            "adapter": job.adapter,
            "adapter_version": None,
        }

    def ended(self, choice: Choice, ending: Ending) -> dict[str, Any]:
        counts = usage(self._job, [ending])
        cut = {"length": "max_output_tokens", FILTERED: FILTERED}.get(ending.finish_reason)
        status = "incomplete" if cut else "completed"
        text = choice.text
        output = [self.message(text, status)] if text or not ending.calls else []
        return {
            **self.begun,
            "status": status,
            "incomplete_details": {"reason": cut} if cut else None,
            "output": [*output, *(call_item(call) for call in ending.calls)],
            "usage": {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": counts["prompt_tokens_details"],
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts["total_tokens"],
            },
            "timings": timings([ending]),
            **adapter_fields(self._job, [ending]),
            **guard_fields([choice.refused] if choice.refused else []),
        }

    def message(self, text: str | None, status: str) -> dict[str, Any]:
        content = [] if text is None else [text_part(text)]
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }


def text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"fc_{call.id}",
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        **call_json(call)["function"],
    }


class _Stream:
    """Writes the events of one response, numbered from 0."""

    def __init__(self, request: Request, reply: _Reply, job: Job, choice: Choice) -> None:
        self._request, self._reply, self._job, self._choice = request, reply, job, choice
        self._number = 0
        self._open = False  # the message has begun

    async def write(self, write: Write) -> None:
        begun = {"response": self._reply.begun}
        await write(self._event("created", begun) + self._event("in_progress", begun))
        try:
            ending = await self._text(write)
        except ApiError as error:
            failed = {**self._reply.begun, "status": "failed"}
            failed["error"] = {"code": "server_error", "message": error.message}
            await write(self._event("failed", {"response": failed}))
            return
        note_endings(self._request, self._job, [ending])
        response = self._reply.ended(self._choice, ending)
        data = b""
        if self._open:
            data += self._message_ends(response["output"][0])
        calls = [item for item in response["output"] if item["type"] == "function_call"]
        for index, item in enumerate(calls, int(self._open)):
            data += self._call(index, item)
        await write(data + self._event(response["status"], {"response": response}))

    async def _text(self, write: Write) -> Ending:
        choice = self._choice
        while new := await choice.ticket.more(choice.read):
            if text := await choice.show(new):
                await write(self._words(text))
            if choice.over:
                choice.ticket.cancel()
                break
        await choice.ticket.ended()
        ending = await choice.finish()
        if ending.words or not (self._open or ending.calls):
            await write(self._words(ending.words))
        return ending

    def _words(self, text: str) -> bytes:
        data = b"" if self._open else self._message_begins()
        place = {"item_id": self._reply.message_id, "output_index": 0, "content_index": 0}
        return data + self._event("output_text.delta", {**place, "delta": text, "logprobs": []})

    def _message_begins(self) -> bytes:
        self._open = True
        reply = self._reply
        item = {"output_index": 0, "item": reply.message(None, "in_progress")}
        place = {"item_id": reply.message_id, "output_index": 0, "content_index": 0}
        return self._event("output_item.added", item) + self._event(
            "content_part.added", {**place, "part": text_part("")}
        )

    def _message_ends(self, item: dict[str, Any]) -> bytes:
        place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        [part] = item["content"]
        return (
            self._event("output_text.done", {**place, "text": part["text"], "logprobs": []})
            + self._event("content_part.done", {**place, "part": part})
            + self._event("output_item.done", {"output_index": 0, "item": item})
        )

    def _call(self, index: int, item: dict[str, Any]) -> bytes:
        place = {"item_id": item["id"], "output_index": index}
        begun = {**item, "arguments": "", "status": "in_progress"}
        return (
            self._event("output_item.added", {"output_index": index, "item": begun})
            + self._event("function_call_arguments.delta", {**place, "delta": item["arguments"]})
            + self._event(
                "function_call_arguments.done",
                {**place, "name": item["name"], "arguments": item["arguments"]},
            )
            + self._event("output_item.done", {"output_index": index, "item": item})
        )

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        value = {"type": f"response.{name}", "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: response." + name.encode() + b"\n" + event(value)
