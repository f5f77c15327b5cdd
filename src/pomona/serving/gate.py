"""Who may ask: Host, Origin, API key, kind and size of the body; and a line in the log for every request.

A web page elsewhere must not use a server on 127.0.0.1 (docs/security.md). Two checks see to that: the Host
header must be an address or a name that we know, so that a foreign name which suddenly resolves to 127.0.0.1
(DNS rebinding) gets nowhere; and a request that changes or computes something must not carry another site's
Origin. JSON is the only body taken, which no HTML form can send.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pomona.serving.errors import ApiError, log
from pomona.serving.event_stream import ClientGoneError
from pomona.serving.settings import is_address
from pomona.serving.state import ServerState

READING = ("GET", "HEAD", "OPTIONS")
# Behind the key, when there is one. Everything else is health, readiness and static pages.
PROTECTED = ("/v1", "/metrics", "/openapi.json")
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 << 10
_HOST = re.compile(rb"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_SECURITY_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class Gate:
    """Pure ASGI middleware: a token of a stream passes through one function call."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app, self._state = app, state
        settings = state.settings
        key = settings.api_key
        self._key = None if key is None else _digest(key.get_secret_value().encode())
        self._hosts = {"localhost", settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
        self._origins = {origin.lower().rstrip("/") for origin in settings.allowed_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request_id = _request_id(scope)
        status = 0
        origin = _one(scope, b"origin")
        shared = self._shared_headers(request_id, origin)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *shared]
                if self._state.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            self._check(scope)
            if scope["method"] == "OPTIONS" and origin is not None:
                await answer({"type": "http.response.start", "status": 204, "headers": _PREFLIGHT})
                await answer({"type": "http.response.body", "body": b""})
            else:
                await self._app(scope, self._bounded(scope, receive), answer)
        except ApiError as error:
            self._state.metrics.refused.labels(error.code or "other").inc()
            await error.response()(scope, receive, answer)
        except ClientGoneError:
            status = 499  # nginx's number for it
        finally:
            self._note(scope, request_id, status, time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        names = [name for name, _ in headers]
        if len(headers) > MAX_HEADERS or sum(len(n) + len(v) for n, v in headers) > MAX_HEADER_BYTES:
            raise ApiError(431, "Too many headers.", code="bad_header", headers={"Connection": "close"})
        for name in (
            b"host",
            b"content-length",
            b"transfer-encoding",
            b"authorization",
            b"origin",
            b"content-type",
        ):
            if names.count(name) > 1:
                raise _bad_header(f"The header '{name.decode()}' came twice.")
        if b"content-length" in names and b"transfer-encoding" in names:
            raise _bad_header("Content-Length and Transfer-Encoding exclude each other.")
        host = self._check_host(scope)
        if scope["method"] not in READING:
            self._check_origin(scope, host)
            self._check_body(scope)
        elif (
            scope["method"] == "OPTIONS"
            and (origin := _one(scope, b"origin")) is not None
            and not self._known(origin, host)
        ):
            raise _foreign()
        if self._key is not None and scope["path"].startswith(PROTECTED):
            self._check_key(scope)

    def _check_host(self, scope: Scope) -> str:
        raw = _one(scope, b"host") or b""
        match = _HOST.fullmatch(raw)
        if match is None:
            raise ApiError(400, "The Host header is missing or is none.", code="bad_host")
        name = match[1].decode().lower()
        bare = name.strip("[]").rstrip(".")
        if bare not in self._hosts and not is_address(bare):
            raise ApiError(
                403,
                "This server is not called so; add the name to allowed_hosts.",
                type="permission_error",
                code="bad_host",
            )
        return raw.decode().lower()

    def _check_origin(self, scope: Scope, host: str) -> None:
        origin, site = _one(scope, b"origin"), _one(scope, b"sec-fetch-site")
        if origin is not None:
            if not self._known(origin, host):
                raise _foreign()
        elif site is not None and site not in (b"same-origin", b"none"):
            raise _foreign()

    def _known(self, origin: bytes, host: str) -> bool:
        text = origin.decode("latin-1").lower()
        if text in self._origins:
            return True
        try:
            parts = urlsplit(text)
        except ValueError:
            return False
        return (
            parts.scheme in ("http", "https") and parts.netloc == host and text == f"{parts.scheme}://{host}"
        )

    def _check_body(self, scope: Scope) -> None:
        length, kind = _one(scope, b"content-length"), _one(scope, b"content-type")
        if length is not None and int(length) > self._state.settings.max_body_bytes:
            raise self._too_large()
        has_body = length not in (None, b"0") or _one(scope, b"transfer-encoding") is not None
        if has_body and (kind or b"").split(b";")[0].strip().lower() != b"application/json":
            raise ApiError(415, "The body must be application/json.", code="unsupported_media_type")

    def _check_key(self, scope: Scope) -> None:
        """In a time that does not depend on the key: digests of one length are compared."""
        given = _one(scope, b"authorization") or b""
        scheme, _, key = given.partition(b" ")
        assert self._key is not None
        right = hmac.compare_digest(_digest(key.strip()), self._key)
        if not (right and scheme.lower() == b"bearer"):
            raise ApiError(
                401,
                "The API key is missing or wrong; send it as 'Authorization: Bearer KEY'.",
                type="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` that ends a body which is too large, or comes too slowly."""
        left, loop = self._state.settings.max_body_bytes, asyncio.get_running_loop()
        until = loop.time() + self._state.settings.body_seconds
        whole = False

        async def bounded() -> Message:
            nonlocal left, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, "The body of the request did not come in time.") from error
            if message["type"] == "http.request":
                left -= len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if left < 0:
                    raise HTTPException(413, self._too_large().message)
            return message

        return bounded

    def _too_large(self) -> ApiError:
        limit = self._state.settings.max_body_bytes
        return ApiError(413, f"The body has more than {limit:,} bytes.", code="body_too_large")

    def _shared_headers(self, request_id: bytes, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        headers = [*_SECURITY_HEADERS, (b"x-request-id", request_id)]
        if origin is not None and origin.decode("latin-1").lower() in self._origins:
            headers += [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
        return headers

    def _note(self, scope: Scope, request_id: bytes, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._state.metrics.requests.labels(route, str(status)).inc()
        fields: dict[str, Any] = {
            "request_id": request_id.decode(),
            "method": scope["method"] if scope["method"].isalpha() and len(scope["method"]) < 8 else "other",
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
            **scope.get("pomona.log", {}),
        }
        log.info("request", extra={"fields": fields})


_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
    (b"access-control-allow-headers", b"authorization, content-type, x-request-id"),
    (b"access-control-max-age", b"600"),
]


def _bad_header(message: str) -> ApiError:
    """What comes after it on the connection may have been meant otherwise, and is not read."""
    return ApiError(400, message, code="bad_header", headers={"Connection": "close"})


def _foreign() -> ApiError:
    return ApiError(
        403,
        "Pages of other sites may not use this server; add their origin to allowed_origins.",
        type="permission_error",
        code="bad_origin",
    )


def _one(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _request_id(scope: Scope) -> bytes:
    """The client's own, where it is harmless."""
    given = _one(scope, b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return b"req_" + secrets.token_hex(12).encode()
