"""Requests to one address of an OpenAI-compatible server: retries, server-sent events, errors in one line.

Nothing is sent anywhere but to the given address: no redirect is followed, and proxies and credentials out of
environment variables or .netrc are not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from pomona.errors import PomonaError

if TYPE_CHECKING:
    import ssl

    import httpx2

RETRIED = (429, 503)
MAX_WAIT_SECONDS = 60.0  # a server that asks for more is given up
MAX_RESPONSE_BYTES = 64 << 20
MAX_EVENT_BYTES = 1 << 20
MAX_ERROR_BYTES = 1 << 16

_sleep = time.sleep  # the tests' handle
_asleep = asyncio.sleep


class Address:
    """POSTs JSON to `base_url`/chat/completions. Several threads and event loops may use one."""

    def __init__(self, base_url: str, *, api_key: str | None, timeout: float, max_retries: int) -> None:
        """timeout: seconds without a byte from the server. max_retries: after 429 and 503."""
        self.base_url = _checked(base_url)
        self._api_key = api_key
        self._timeout = timeout
        self._max_retries = max_retries
        self._lock = threading.Lock()
        self._client: httpx2.Client | None = None
        self._closed = False

    def close(self) -> None:
        with self._lock:
            client, self._client, self._closed = self._client, None, True
        if client is not None:
            client.close()

    def post(self, payload: Mapping[str, Any]) -> Any:
        """The JSON of the answer."""
        with self._response(payload) as response, self._told():
            return self._json(_limited(response.iter_bytes()))

    async def apost(self, payload: Mapping[str, Any]) -> Any:
        async with self._aresponse(payload) as response:
            with self._told():
                chunks = [chunk async for chunk in _alimited(response.aiter_bytes())]
            return self._json(iter(chunks))

    def events(self, payload: Mapping[str, Any]) -> Generator[Any, None, None]:
        """The JSON of each event of a stream, up to its [DONE]."""
        import httpx2

        with self._response(payload) as response, self._told():
            total = 0
            for event in httpx2.EventSource(response, MAX_EVENT_BYTES):
                total = self._counted(total, event)
                if event.data == "[DONE]":
                    return
                yield self._event(event)
        raise self._broken_off()

    async def aevents(self, payload: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        import httpx2

        async with self._aresponse(payload) as response:
            with self._told():
                total = 0
                source = cast(Any, aiter(httpx2.EventSource(response, MAX_EVENT_BYTES)))
                async with contextlib.aclosing(source) as events:
                    async for event in events:
                        total = self._counted(total, event)
                        if event.data == "[DONE]":
                            return
                        yield self._event(event)
        raise self._broken_off()

    # --- one request --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _response(self, payload: Mapping[str, Any]) -> Iterator[httpx2.Response]:
        """The response to a request that was accepted, not read yet."""
        client = self._synchronous()
        for attempt in range(self._max_retries + 1):
            with contextlib.ExitStack() as stack:
                with self._told():
                    response = stack.enter_context(client.stream("POST", self._url, **self._body(payload)))
                if response.status_code == 200:
                    yield response
                    return
                with self._told():
                    body = _start(response.iter_bytes())
            _sleep(self._pause(response, body, attempt))
        raise AssertionError("the last attempt returns or raises")

    @contextlib.asynccontextmanager
    async def _aresponse(self, payload: Mapping[str, Any]) -> AsyncIterator[httpx2.Response]:
        import httpx2

        self._check_open()
        # A client belongs to one event loop, so each request has its own.
        async with httpx2.AsyncClient(**self._client_options) as client:
            for attempt in range(self._max_retries + 1):
                async with contextlib.AsyncExitStack() as stack:
                    with self._told():
                        response = await stack.enter_async_context(
                            client.stream("POST", self._url, **self._body(payload))
                        )
                    if response.status_code == 200:
                        yield response
                        return
                    with self._told():
                        body = await _astart(response.aiter_bytes())
                await _asleep(self._pause(response, body, attempt))
        raise AssertionError("the last attempt returns or raises")

    @property
    def _url(self) -> str:
        return f"{self.base_url}/chat/completions"

    def _body(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers["Accept"] = "text/event-stream" if payload.get("stream") else "application/json"
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        try:
            content = json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise PomonaError(
                f"{self.base_url}: the request is no JSON ({error}); check the texts"
            ) from error
        return {"content": content, "headers": headers}

    @cached_property
    def _verify(self) -> ssl.SSLContext | bool:
        import httpx2

        if self.base_url.startswith("https:"):
            return httpx2.create_ssl_context(trust_env=False)
        return True

    @property
    def _client_options(self) -> dict[str, Any]:
        return {
            "timeout": self._timeout,
            "trust_env": False,
            "follow_redirects": False,
            "verify": self._verify,
        }

    def _synchronous(self) -> httpx2.Client:
        import httpx2

        with self._lock:
            self._check_open()
            if self._client is None:
                self._client = httpx2.Client(**self._client_options)
            return self._client

    def _check_open(self) -> None:
        if self._closed:
            raise PomonaError(f"{self.base_url}: this RemoteModel is closed; make another one")

    # --- what the server says -----------------------------------------------------------------------------

    def _pause(self, response: httpx2.Response, body: bytes, attempt: int) -> float:
        """Seconds until the next attempt. Raises PomonaError when there is none."""
        status = response.status_code
        if 300 <= status < 400:
            place = response.headers.get("location", "nowhere")
            raise self._error(f"redirects to {place}, which is not followed; give the final address")
        told = _message(body)
        if status not in RETRIED:
            raise self._error(f"refused with status {status} ({told}); {_advice(status)}")
        if attempt == self._max_retries:
            raise self._error(
                f"is busy: status {status} ({told}) after {attempt + 1} attempts; try again later"
            )
        asked = _retry_after(response.headers.get("retry-after"))
        if asked is None:
            return min(0.5 * 2.0**attempt, MAX_WAIT_SECONDS) * random.uniform(0.5, 1.0)
        if asked > MAX_WAIT_SECONDS:
            raise self._error(f"is busy and asks to wait {asked:.0f} seconds; try again then")
        return asked

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong on the way, as PomonaError."""
        import httpx2

        try:
            yield
        except httpx2.TimeoutException as error:
            raise self._error(
                f"said nothing for {self._timeout:g} seconds; raise timeout, or look at the server"
            ) from error
        except httpx2.ConnectError as error:
            raise self._error(f"cannot be reached ({error}); start the server, or mend base_url") from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            what = str(error) or type(error).__name__
            raise self._error(f"broke off or does not speak the protocol ({what}); ask again") from error

    def _json(self, chunks: Iterator[bytes]) -> Any:
        try:
            return json.loads(b"".join(chunks))
        except (ValueError, RecursionError) as error:
            raise self._error(
                "answered with something that is no JSON; is base_url right? It often ends in /v1"
            ) from error

    def _event(self, event: httpx2.ServerSentEvent) -> Any:
        if event.event == "error":
            raise self._error(f"stopped with an error ({_message(event.data.encode())}); ask again")
        try:
            value = json.loads(event.data)
        except (ValueError, RecursionError) as error:
            raise self._error("sent an event that is no JSON; look at the server") from error
        if isinstance(value, dict) and value.get("error"):
            raise self._error(f"stopped with an error ({_message(event.data.encode())}); ask again")
        return value

    def _counted(self, total: int, event: httpx2.ServerSentEvent) -> int:
        total += len(event.data)
        if total > MAX_RESPONSE_BYTES:
            raise self._error("sent more than 64 MiB; lower max_new_tokens")
        return total

    def _broken_off(self) -> PomonaError:
        return self._error("ended its stream without [DONE], so something is missing; ask again")

    def _error(self, what: str) -> PomonaError:
        if self._api_key:  # servers like to repeat it
            what = what.replace(self._api_key, "(the API key)")
        return PomonaError(f"{self.base_url}: {what}")


def _checked(base_url: str) -> str:
    import httpx2

    if not isinstance(base_url, str):
        raise PomonaError("base_url: must be a text, such as http://127.0.0.1:8000/v1")
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as error:
        raise PomonaError(f"base_url {base_url}: is no address ({error})") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise PomonaError(f"base_url {base_url}: must be like http://127.0.0.1:8000/v1")
    if url.userinfo:
        raise PomonaError("base_url: has a password in it; use api_key")
    if url.query or url.fragment:
        raise PomonaError(f"base_url {base_url}: has ? or #; end it with the path, often /v1")
    return base_url.rstrip("/")


def _advice(status: int) -> str:
    if status in (401, 403):
        return "check api_key"
    if status == 404:
        return "check base_url (it often ends in /v1) and the model's name"
    return "change the request" if status < 500 else "look at the server"


def _message(body: bytes) -> str:
    """What a server says about its error, in whichever of the usual places."""
    text = body.decode("utf-8", "replace").strip()
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
        for _ in range(2):
            if isinstance(value, dict):
                found = (value.get(key) for key in ("error", "message", "detail"))
                value = next((one for one in found if one), "")
        text = value if isinstance(value, str) else json.dumps(value)
    return text[:300] or "no explanation"


def _retry_after(value: str | None) -> float | None:
    """Seconds, from seconds or a date; None when there is nothing that one can read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    now = datetime.now(timezone.utc)  # noqa: UP017  (the same name on every version)
    return max((when if when.tzinfo else when.replace(tzinfo=now.tzinfo)).timestamp() - now.timestamp(), 0.0)


def _limited(chunks: Iterator[bytes]) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total = _added(total, chunk)
        yield chunk


async def _alimited(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    total = 0
    async for chunk in chunks:
        total = _added(total, chunk)
        yield chunk


def _added(total: int, chunk: bytes) -> int:
    total += len(chunk)
    if total > MAX_RESPONSE_BYTES:
        raise PomonaError("the server's answer is larger than 64 MiB; lower max_new_tokens")
    return total


def _start(chunks: Iterator[bytes]) -> bytes:
    """The beginning of an error's body: enough to tell what it says."""
    found = b""
    for chunk in chunks:
        found += chunk
        if len(found) >= MAX_ERROR_BYTES:
            break
    return found[:MAX_ERROR_BYTES]


async def _astart(chunks: AsyncIterator[bytes]) -> bytes:
    found = b""
    async for chunk in chunks:
        found += chunk
        if len(found) >= MAX_ERROR_BYTES:
            break
    return found[:MAX_ERROR_BYTES]
