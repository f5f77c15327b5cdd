"""GET /health (the process lives), /ready (it takes requests), /metrics (Prometheus)."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from pomona.serving.errors import RESPONSES
from pomona.serving.state import state_of

router = APIRouter()


class Health(BaseModel):
    status: Literal["ok"]


class Readiness(BaseModel):
    ready: bool
    reason: str | None
    waiting: int
    running: int


@router.get("/health", response_model=Health)
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/ready", response_model=Readiness, responses={503: {"model": Readiness}})
async def ready(request: Request) -> Response:
    """200 when a request would be taken now; 503 while the queue is full or the server is shutting down."""
    state = state_of(request)
    stats = state.model.scheduler.stats()
    reason = "shutting down" if state.draining else None
    if reason is None and stats.waiting >= state.settings.max_waiting:
        reason = "the queue is full"
    body = {"ready": reason is None, "reason": reason, "waiting": stats.waiting, "running": stats.running}
    return JSONResponse(body, 200 if reason is None else 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **RESPONSES},
)
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    return Response(generate_latest(state_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)
