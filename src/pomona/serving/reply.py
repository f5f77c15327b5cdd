"""What replies of all kinds share: usage, timings, the adapter, the text of a stream's chunks."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from pydantic import BaseModel, ConfigDict

from pomona.runtime.transcript import ToolCall
from pomona.serving.answering import Choice, Ending, Job
from pomona.serving.state import ServerState

__all__ = ["Base", "Timings", "Usage", "call_json", "new_id", "quoted", "reply_fields", "timings", "usage"]


class PromptDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Timings(BaseModel):
    """Seconds as the scheduler measured them; of several choices the longest."""

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    first_token_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


class Base(BaseModel):
    """What every reply of a model begins with."""

    model_config = ConfigDict(extra="forbid")

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
    timings: Timings
    adapter: str | None
    adapter_version: int | None


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


def usage(endings: Sequence[Ending]) -> dict[str, Any]:
    """The prompt counts once, however many choices were made of it."""
    first = endings[0].completion
    new = sum(ending.tokens for ending in endings)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": new,
        "total_tokens": first.prompt_tokens + new,
        "prompt_tokens_details": {"cached_tokens": first.reused_tokens},
    }


def timings(endings: Sequence[Ending]) -> dict[str, float]:
    queue = max(ending.completion.queue_seconds for ending in endings)
    prefill = max(ending.completion.prefill_seconds for ending in endings)
    decode = max(ending.completion.decode_seconds for ending in endings)
    first = endings[0].completion
    computed = first.prompt_tokens - first.reused_tokens
    decoded = sum(max(ending.tokens - 1, 0) for ending in endings)
    return {
        "queue_seconds": round(queue, 6),
        "prefill_seconds": round(prefill, 6),
        "decode_seconds": round(decode, 6),
        "first_token_seconds": round(
            max(e.completion.queue_seconds + e.completion.prefill_seconds for e in endings), 6
        ),
        "prefill_tokens_per_second": round(computed / prefill, 1) if prefill > 0 else 0.0,
        "decode_tokens_per_second": round(decoded / decode, 1) if decode > 0 else 0.0,
    }


def adapter_fields(job: Job, endings: Sequence[Ending]) -> dict[str, Any]:
    return {"adapter": job.adapter, "adapter_version": endings[0].completion.adapter_version}


def reply_fields(
    state: ServerState, job: Job, prefix: str, object_name: str, endings: Sequence[Ending]
) -> dict[str, Any]:
    return {
        "id": new_id(prefix),
        "object": object_name,
        "created": int(time.time()),
        "model": job.model_id,
        "system_fingerprint": state.fingerprint,
        "usage": usage(endings),
        "timings": timings(endings),
        **adapter_fields(job, endings),
    }


def call_json(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False, separators=(",", ":"))
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


class ChunkWriter:
    """The chunks of one stream. What all of them share is written once; a piece of text costs one call of the
    JSON encoder's C function."""

    def __init__(
        self, state: ServerState, job: Job, prefix: str, object_name: str, *, with_usage: bool
    ) -> None:
        head = {
            "id": new_id(prefix),
            "object": object_name,
            "created": int(time.time()),
            "model": job.model_id,
            "system_fingerprint": state.fingerprint,
        }
        self._head = "data: " + json.dumps(head, separators=(",", ":"))[:-1]
        self._end = ',"usage":null}\n\n' if with_usage else "}\n\n"
        self._job = job

    def chunk(self, choice: str) -> bytes:
        """`choice`: the JSON of the one choice in it."""
        return f'{self._head},"choices":[{choice}]{self._end}'.encode()

    def last_of(self, choice: str, ending: Ending) -> bytes:
        """The chunk with a choice's finish_reason, which also tells timings and adapter."""
        extra = {"timings": timings([ending]), **adapter_fields(self._job, [ending])}
        more = json.dumps(extra, separators=(",", ":"))[1:-1]
        return f'{self._head},"choices":[{choice}],{more}{self._end}'.encode()

    def usage(self, endings: Sequence[Ending]) -> bytes:
        text = json.dumps(usage(endings), separators=(",", ":"))
        return f'{self._head},"choices":[],"usage":{text}}}\n\n'.encode()


def note_endings(state: ServerState, job: Job, endings: Sequence[Ending]) -> None:
    for ending in endings:
        state.metrics.answered(job.adapter, ending.completion, ending.finish_reason)


def cancel_all(choices: Sequence[Choice]) -> None:
    for choice in choices:
        choice.ticket.cancel()
