"""GET /v1/models: the base and its adapters, each a model id."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from pomona.serving.errors import RESPONSES
from pomona.serving.state import ServerState, state_of

router = APIRouter()


class ModelCard(BaseModel):
    """`adapter`: what runs under this id; null for the base alone."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["pomona"]
    adapter: str | None
    context_tokens: int


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


@router.get("/v1/models", response_model=ModelList, responses=RESPONSES)
async def list_models(request: Request) -> dict[str, Any]:
    """The model ids that requests may name."""
    state = state_of(request)
    return {"object": "list", "data": [_card(state, model_id) for model_id in state.model_ids]}


@router.get("/v1/models/{model_id:path}", response_model=ModelCard, responses=RESPONSES)
async def get_model(model_id: str, request: Request) -> dict[str, Any]:
    """One of them."""
    state = state_of(request)
    state.adapter_of(model_id)
    return _card(state, model_id)


def _card(state: ServerState, model_id: str) -> dict[str, Any]:
    return {
        "id": model_id,
        "object": "model",
        "created": int(state.started),
        "owned_by": "pomona",
        "adapter": state.adapter_of(model_id),
        "context_tokens": state.context_tokens,
    }
