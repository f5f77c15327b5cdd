"""POST /v1/tokenize and /v1/detokenize: what the model reads, and what tokens mean."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator

from pomona.errors import PomonaError
from pomona.serving.chat_request import MAX_TOOLS, Body, Message, ModelId, ToolDefinition
from pomona.serving.conversation import entries_of, tool_of
from pomona.serving.errors import RESPONSES, ApiError, refused
from pomona.serving.state import ServerState, state_of

router = APIRouter()


class TokenizeBody(Body):
    """A text as it is, or the messages of a conversation as the chat template renders them."""

    model: ModelId | None = None
    text: str | None = None
    add_special_tokens: bool = True
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeBody:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either text or messages")
        if self.tools is not None and self.messages is None:
            raise ValueError("tools: need messages")
        return self


class Tokens(BaseModel):
    tokens: list[int]
    count: int
    context_tokens: int


class DetokenizeBody(Body):
    model: ModelId | None = None
    tokens: list[Annotated[int, Field(ge=0, lt=1 << 31)]]


class Text(BaseModel):
    text: str


@router.post("/v1/tokenize", response_model=Tokens, responses=RESPONSES)
async def tokenize(body: TokenizeBody, request: Request) -> dict[str, Any]:
    """Token ids of a text or a conversation."""
    state = state_of(request)
    if body.model is not None:
        state.adapter_of(body.model)
    ids = await asyncio.to_thread(_ids, body, state)
    return {"tokens": ids, "count": len(ids), "context_tokens": state.context_tokens}


@router.post("/v1/detokenize", response_model=Text, responses=RESPONSES)
async def detokenize(body: DetokenizeBody, request: Request) -> dict[str, Any]:
    """The text of token ids, control tokens among them."""
    state = state_of(request)
    if body.model is not None:
        state.adapter_of(body.model)
    vocabulary = state.model.engine.config.vocab_size
    if wrong := [token for token in body.tokens if token >= vocabulary]:
        raise ApiError(
            400, f"'tokens': {wrong[0]} is outside the vocabulary of {vocabulary:,}.", param="tokens"
        )
    return {"text": await asyncio.to_thread(state.model.tokenizer.decode, body.tokens, False)}


def _ids(body: TokenizeBody, state: ServerState) -> list[int]:
    model = state.model
    try:
        if body.text is not None:
            return model.tokenizer.encode(
                body.text, add_special_tokens=body.add_special_tokens, parse_special=False
            )
        assert body.messages is not None
        tools = tuple(
            tool_of(tool.function, f"tools[{number}].function", state.settings)
            for number, tool in enumerate(body.tools or ())
        )
        messages, shown = model.dialect.messages(entries_of(body.messages), tools)
        return model.render(messages, tools=shown)
    except PomonaError as error:
        raise refused(error, param="text" if body.messages is None else "messages") from error
