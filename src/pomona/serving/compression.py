"""GET /v1/compression: what every tensor of the served model costs and loses.

The data of `pomona inspect --report` and of its page. Times are measured in the running engine, for about a
second on the first request, and kept; a measurement beside answers would show their time as the model's, so
that it is made only while nobody is being answered.
"""

from __future__ import annotations

import threading
from typing import Any

from fastapi import APIRouter, Request

from pomona.compression.analysis import Analysis, read_report
from pomona.compression.report import REPORT_FILE
from pomona.errors import PomonaError
from pomona.runtime.model import Model
from pomona.runtime.profile import TokenProfile, measure_decoding
from pomona.serving.errors import RESPONSES, ApiError
from pomona.serving.state import state_of

PATIENCE = 4.0  # seconds of measuring on a busy machine: a request waits for it
ATTEMPTS = 3

router = APIRouter(prefix="/v1", tags=["compression"], responses=RESPONSES)
_measuring = threading.Lock()


@router.get("/compression", summary="Bits, bytes, loss and time of every tensor")
def compression(request: Request, again: bool = False) -> dict[str, Any]:
    """`again`: measure once more. 404 for a model that `pomona compress` did not make, 503 while others are
    being answered."""
    state = state_of(request)
    model: Model = state.model
    directory = model.engine.directory
    if not (directory / REPORT_FILE).is_file():
        raise ApiError(
            404,
            f"{state.model_id} has no {REPORT_FILE}: only models that `pomona compress` made can be shown",
            code="no_compression_report",
        )
    kept: dict[str, Any] | None = getattr(request.app.state, "compression", None)
    if kept is not None and not again:
        return kept
    try:
        report = read_report(directory)
    except PomonaError as error:
        raise ApiError(404, str(error), code="no_compression_report") from error
    with _measuring:
        profile = quiet_profile(model)
    data = Analysis.of(state.model_id, model.engine.fingerprint, report, profile).to_json()
    request.app.state.compression = data
    return data


def quiet_profile(model: Model) -> TokenProfile:
    """A measurement during which nothing else ran. ApiError 503 if there was no such moment."""
    for _ in range(ATTEMPTS):
        before = model.scheduler.stats()
        if before.running or before.waiting:
            break
        profile = measure_decoding(model.engine, patience=PATIENCE)
        if model.scheduler.stats().steps == before.steps:
            return profile
    raise ApiError(
        503,
        "the model is answering others, which would be measured as well; ask again when it is idle",
        type="server_error",
        code="busy",
        headers={"Retry-After": "5"},
    )
