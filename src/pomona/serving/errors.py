"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}, whatever went wrong."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from pomona.errors import PomonaError, one_line
from pomona.runtime.adapters import AdapterMemoryFullError, UnknownAdapterError
from pomona.runtime.ticket import Overloaded
from pomona.safety.guardrail_policy import Blocked

log = logging.getLogger("pomona.serving")

# Fields of OpenAI's that we know of and do not have: they get a message of their own.
UNSUPPORTED = frozenset(
    (
        *("audio", "background", "best_of", "context_management", "conversation", "echo", "function_call"),
        *("functions", "include", "max_tool_calls", "modalities", "prediction", "previous_response_id"),
        *("prompt_cache_retention", "reasoning", "reasoning_effort", "suffix", "truncation", "verbosity"),
        "web_search_options",
    )
)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


# For the OpenAPI document of every route.
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be served as it is."},
    "5XX": {"model": ErrorBody, "description": "The server cannot serve it now."},
}


class ApiError(Exception):
    """What a handler raises to refuse. `param` names the field that is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type = status, message, type
        self.param, self.code, self.headers = param, code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def refused(error: PomonaError, *, param: str | None = None) -> ApiError:
    """An error of the runtime as a reply."""
    message = one_line(str(error))
    if isinstance(error, Overloaded):
        seconds = max(1, math.ceil(error.retry_seconds))
        headers = {"Retry-After": str(seconds), "Retry-After-Ms": str(round(1000 * error.retry_seconds))}
        return ApiError(429, message, type="rate_limit_error", code="queue_full", headers=headers)
    if isinstance(error, Blocked):
        return ApiError(400, message, param=param, code="content_filter")
    if isinstance(error, AdapterMemoryFullError):
        return ApiError(503, message, type="server_error", code="adapter_memory_full")
    if isinstance(error, UnknownAdapterError):  # forgotten while the request waited for its turn
        return ApiError(404, message, param="model", code="model_not_found")
    return ApiError(400, message, param=param)


def unavailable(message: str) -> ApiError:
    return ApiError(503, message, type="server_error", code="shutting_down", headers={"Retry-After": "5"})


def internal() -> ApiError:
    """What is told of a bug: nothing. The log has it."""
    return ApiError(500, "the server failed; its log says why", type="server_error", code="internal_error")


def validation_error(problems: Sequence[Any]) -> ApiError:
    """Pydantic's first problem with a body, under the name of its field.

    Of the forms that a field may have, the one that was meant is that in which the problem lies deepest.
    """
    place = field_name(problems[0].get("loc", ()))
    same = [one for one in problems if field_name(one.get("loc", ())).startswith(place)]
    problem = max(same, key=lambda one: len(one.get("loc", ())))
    place = field_name(problem.get("loc", ()))
    last = place.rpartition(".")[2] or place
    kind = problem.get("type", "")
    if kind == "extra_forbidden":
        if last in UNSUPPORTED:
            return ApiError(
                400, f"Unsupported parameter: '{place}' is not supported by this server.",
                param=place, code="unsupported_parameter",
            )  # fmt: skip
        return ApiError(400, f"Unknown parameter: '{place}'.", param=place, code="unknown_parameter")
    if kind == "missing":
        return ApiError(
            400, f"Missing required parameter: '{place or 'body'}'.",
            param=place or None, code="missing_required_parameter",
        )  # fmt: skip
    if kind == "json_invalid":
        return ApiError(400, "The body is not valid JSON.", code="invalid_json")
    text = one_line(str(problem.get("msg", "")))[:300].removeprefix("Value error, ")
    where = f"Invalid value for '{place}': " if place else "Invalid body: "
    return ApiError(400, f"{where}{text}.".replace("..", "."), param=place or None, code="invalid_value")


def field_name(place: Sequence[Any]) -> str:
    """messages[0].content of ("body", "messages", 0, "user", "content", "str"): without the names of unions'
    members."""
    name = ""
    parts = [part for part in place if part not in ("body", "query", "path", "header")]
    for index, part in enumerate(parts):
        if isinstance(part, int):
            name += f"[{part}]"
        elif not _is_member(parts, index):
            name += f".{part}" if name else str(part)
    return name


# Names that Pydantic puts into the place of a problem for the member of a union that was tried.
_MEMBERS = frozenset(
    (
        *("str", "int", "float", "bool", "list", "dict", "none", "text", "function"),
        *("system", "developer", "user", "assistant", "tool", "json_schema", "json_object"),
    )
)
_UNIONS = ("content", "response_format", "tool_choice", "stop", "input", "format", "prompt")


def _is_member(parts: Sequence[Any], index: int) -> bool:
    part = str(parts[index])
    if "[" in part or part[:1].isupper() or part.startswith(("literal", "constrained-")):
        return True
    if part not in _MEMBERS or index == 0:
        return False
    before = parts[index - 1]
    return isinstance(before, int) or before in _UNIONS


def add_handlers(app: FastAPI) -> None:
    """Every exception that a handler lets out becomes a reply in OpenAI's shape."""

    async def api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return validation_error(error.errors()).response()

    async def http_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
        codes = {404: "not_found", 405: "method_not_allowed"}
        return ApiError(
            error.status_code, str(error.detail), type=kind,
            code=codes.get(error.status_code), headers=error.headers,
        ).response()  # fmt: skip

    async def pomona_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, PomonaError)
        return refused(error).response()

    async def bug(_: Request, error: Exception) -> JSONResponse:
        return internal().response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(PomonaError, pomona_error)
    app.add_exception_handler(Exception, bug)
