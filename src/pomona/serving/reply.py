"""What replies of all kinds share: identity, usage, timings, the adapter."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict

from pomona.runtime.transcript import ToolCall
from pomona.serving.answering import Ending, Job
from pomona.serving.state import ServerState, state_of


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


class RefusedBy(BaseModel):
    """Why the guardrail refused. harm and threshold are null where a phrase of the policy's was found."""

    feature: str
    side: Literal["input", "output"]
    category: str
    message: str
    harm: float | None
    threshold: float | None


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
    guardrail: RefusedBy | None = None  # only where a text was refused


def usage(job: Job, endings: Sequence[Ending]) -> dict[str, Any]:
    """A prompt counts once, however many choices were made of it."""
    prompts = [ending.completion for ending in endings[:: job.choices]]
    asked = sum(completion.prompt_tokens for completion in prompts)
    new = sum(ending.tokens for ending in endings)
    return {
        "prompt_tokens": asked,
        "completion_tokens": new,
        "total_tokens": asked + new,
        "prompt_tokens_details": {"cached_tokens": sum(completion.reused_tokens for completion in prompts)},
    }


def timings(endings: Sequence[Ending]) -> dict[str, float]:
    queue = max(ending.completion.queue_seconds for ending in endings)
    prefill = max(ending.completion.prefill_seconds for ending in endings)
    decode = max(ending.completion.decode_seconds for ending in endings)
    first_token = max(e.completion.queue_seconds + e.completion.prefill_seconds for e in endings)
    first = endings[0].completion
    computed = first.prompt_tokens - first.reused_tokens
    decoded = sum(max(ending.tokens - 1, 0) for ending in endings)
    return {
        "queue_seconds": round(queue, 6),
        "prefill_seconds": round(prefill, 6),
        "decode_seconds": round(decode, 6),
        "first_token_seconds": round(first_token, 6),
        "prefill_tokens_per_second": round(computed / prefill, 1) if prefill > 0 else 0.0,
        "decode_tokens_per_second": round(decoded / decode, 1) if decode > 0 else 0.0,
    }


def adapter_fields(job: Job, endings: Sequence[Ending]) -> dict[str, Any]:
    return {"adapter": job.adapter, "adapter_version": endings[0].completion.adapter_version}


def head_fields(state: ServerState, job: Job, prefix: str, object_name: str) -> dict[str, Any]:
    """What a reply and each chunk of a stream begin with."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": object_name,
        "created": int(time.time()),
        "model": job.model_id,
        "system_fingerprint": state.fingerprint,
    }


def reply_fields(
    state: ServerState, job: Job, prefix: str, object_name: str, endings: Sequence[Ending]
) -> dict[str, Any]:
    return {
        **head_fields(state, job, prefix, object_name),
        "usage": usage(job, endings),
        "timings": timings(endings),
        **adapter_fields(job, endings),
    }


def call_json(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False, separators=(",", ":"))
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def note_endings(request: Request, job: Job, endings: Sequence[Ending]) -> None:
    """Into the metrics, and into the request's line in the log: counts and times, no words."""
    state = state_of(request)
    for ending in endings:
        state.metrics.answered(job.adapter, ending.completion, ending.finish_reason)
    times = timings(endings)
    request.scope["pomona.log"] = {
        "adapter": job.adapter,
        "choices": len(endings),
        "finish_reason": endings[0].finish_reason,
        **{key: value for key, value in usage(job, endings).items() if isinstance(value, int)},
        "queue_seconds": times["queue_seconds"],
        "first_token_seconds": times["first_token_seconds"],
        "decode_tokens_per_second": times["decode_tokens_per_second"],
    }
