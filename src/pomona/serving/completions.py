"""POST /v1/completions: the continuation of a raw text, without any chat template."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from pomona.errors import PomonaError
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
from pomona.serving.chat_request import CompletionRequest
from pomona.serving.errors import RESPONSES, ApiError, refused
from pomona.serving.guarding import guard_fields
from pomona.serving.logprobs import TextLogprobs, text_logprobs
from pomona.serving.reply import Base, reply_fields
from pomona.serving.state import ServerState, state_of
from pomona.serving.streaming import COMPACT, ChunkStream, whole

DEFAULT_MAX_TOKENS = 16  # OpenAI's

router = APIRouter()


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"]


class CompletionReply(Base):
    object: Literal["text_completion"]
    choices: list[TextChoice]


@router.post(
    "/v1/completions",
    responses={200: {"model": CompletionReply, "content": {"text/event-stream": {}}}, **RESPONSES},
)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continues one text or several, whole or as a stream of server-sent events (`stream`)."""
    state = state_of(request)
    state.check_open()
    if isinstance(body.prompt, str) and len(body.prompt) < INLINE_CHARACTERS:
        jobs = jobs_of(body, state)
    else:
        jobs = await asyncio.to_thread(jobs_of, body, state)
    choices = await submitted(state, *jobs)
    if body.stream:
        return _TextStream(request, state, jobs[0], choices).response()
    endings = await whole(request, jobs[0], choices)
    reply = reply_fields(state, jobs[0], "cmpl", "text_completion", endings)
    pairs = zip(choices, endings, strict=True)
    reply["choices"] = [_choice_json(state, choice, ending) for choice, ending in pairs]
    reply |= guard_fields([choice.refused for choice in choices if choice.refused])
    return JSONResponse(reply)


def jobs_of(body: CompletionRequest, state: ServerState) -> list[Job]:
    """One job per prompt. ApiError, with the field's name, for what cannot be done."""
    adapter = state.adapter_of(body.model)
    number = check_choices(body, state)
    sampling = sampling_of(body, state)
    asked = body.max_tokens or DEFAULT_MAX_TOKENS
    jobs = []
    for prompt in _prompts(body):
        ids = _ids(prompt, state)
        jobs.append(
            Job(
                body.model,
                adapter,
                ids,
                sampling,
                room_for(len(ids), asked, state, param="prompt"),
                deadline_of(body, state),
                number,
                body.stop_texts,
                include_usage=body.includes_usage,
                logprobs=body.logprobs,
                said=(prompt if isinstance(prompt, str) else state.model.tokenizer.decode(prompt),),
            )
        )
    return jobs


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(item, int) for item in prompt):
        return [prompt]  # type: ignore[list-item]
    return list(prompt)  # type: ignore[arg-type]


def _ids(prompt: str | list[int], state: ServerState) -> tuple[int, ...]:
    if isinstance(prompt, str):
        try:
            ids = state.model.tokenizer.encode(prompt, add_special_tokens=True, parse_special=False)
        except PomonaError as error:
            raise refused(error, param="prompt") from error
        return tuple(ids)
    vocabulary = state.model.engine.config.vocab_size
    if wrong := [token for token in prompt if token >= vocabulary]:
        raise ApiError(
            400, f"'prompt': token {wrong[0]} is outside the vocabulary of {vocabulary:,}.", param="prompt"
        )
    return tuple(prompt)


def _choice_json(state: ServerState, choice: Choice, ending: Ending) -> dict[str, Any]:
    return {
        "index": choice.index,
        "text": choice.text,
        "logprobs": text_logprobs(state.model.tokenizer, choice),
        "finish_reason": ending.finish_reason,
    }


class _TextStream(ChunkStream):
    prefix, object_name = "cmpl", "text_completion"

    def words(self, choice: Choice, text: str, first: bool) -> str:
        return self._choice(choice, text, "null")

    def ending(self, choice: Choice, ending: Ending) -> Iterable[str]:
        yield self._choice(choice, "", f'"{ending.finish_reason}"')

    def _choice(self, choice: Choice, text: str, reason: str) -> str:
        logprobs = "null"
        if self.job.logprobs is not None:
            told = text_logprobs(self.state.model.tokenizer, choice)
            logprobs = json.dumps(told, separators=COMPACT)
        return (
            f'{{"index":{choice.index},"text":{quoted(text)},"logprobs":{logprobs},"finish_reason":{reason}}}'
        )
