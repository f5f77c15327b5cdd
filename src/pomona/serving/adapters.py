"""/v1/adapters: what adapters there are and what memory they take; load, replace, unload and pin them live.

A path from a client names a folder below the adapter store or the model's own adapters, nothing else: it is
resolved with all its links before it is compared, and the files in it must not lead out either. Weights are
safetensors; nothing is unpickled.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, StringConstraints

from pomona.adapters.store import FILES, check_name
from pomona.errors import PomonaError
from pomona.runtime.adapters import AdapterStatus
from pomona.runtime.model import ADAPTERS_FOLDER
from pomona.serving.chat_request import Body
from pomona.serving.errors import RESPONSES, ApiError, refused
from pomona.serving.state import ServerState, state_of, task_of

router = APIRouter()
T = TypeVar("T")
PathText = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
NameText = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class AdapterCard(BaseModel):
    """`bytes`: in memory when it was last loaded. `default`: it runs under the base's own model id."""

    id: str
    task: str | None
    version: int
    resident: bool
    pinned: bool
    bytes: int
    hits: int
    misses: int
    default: bool


class AdapterList(BaseModel):
    object: Literal["list"]
    budget_bytes: int
    used_bytes: int
    data: list[AdapterCard]


class LoadBody(Body):
    """`path`: relative to the store or to the model's adapters; by default the name."""

    name: NameText
    path: PathText | None = None


class ReplaceBody(Body):
    """`path`: by default the folder that the adapter came from, read again."""

    path: PathText | None = None


class PinBody(Body):
    pinned: bool


class Unloaded(BaseModel):
    id: str
    deleted: bool


@router.get("/v1/adapters", response_model=AdapterList, responses=RESPONSES)
async def list_adapters(request: Request) -> dict[str, Any]:
    """All adapters that requests may name, with their memory and their use."""
    state = state_of(request)
    cache = state.model.adapters
    return {
        "object": "list",
        "budget_bytes": cache.budget_bytes,
        "used_bytes": cache.alive_bytes,
        "data": [_card(state, status) for status in sorted(cache.status(), key=lambda one: one.name)],
    }


@router.post("/v1/adapters", response_model=AdapterCard, responses=RESPONSES)
async def load_adapter(body: LoadBody, request: Request) -> dict[str, Any]:
    """Makes an adapter known, if it is new, and reads it into memory."""
    state = state_of(request)

    def load() -> None:
        cache = state.model.adapters
        _check_name(body.name)
        known = {status.name: status for status in cache.status()}
        if body.name in known:
            if body.path is not None and _directory(state, body.path) != known[body.name].directory.resolve():
                raise ApiError(
                    409,
                    f"Adapter '{body.name}' is there already and comes from elsewhere; PUT replaces it.",
                    param="name",
                    code="adapter_exists",
                )
            cache.acquire(body.name)
            return
        directory = _directory(state, body.path or body.name)
        cache.register(body.name, directory)
        try:
            cache.acquire(body.name)
        except BaseException:
            cache.remove(body.name)
            raise

    await _done(state, load, "path")
    return _find(state, body.name)


@router.put("/v1/adapters/{name}", response_model=AdapterCard, responses=RESPONSES)
async def replace_adapter(name: str, body: ReplaceBody, request: Request) -> dict[str, Any]:
    """Puts another adapter in the place of one. Requests that run keep the version that they started with;
    when the new one is no good, the old one stays."""
    state = state_of(request)
    status = _status(state, name)

    def replace() -> None:
        directory = status.directory if body.path is None else _directory(state, body.path)
        state.model.adapters.replace(name, directory)

    await _done(state, replace, "path")
    return _find(state, name)


@router.delete("/v1/adapters/{name}", response_model=Unloaded, responses=RESPONSES)
async def unload_adapter(
    name: str, request: Request, forget: Annotated[bool, Query(description="Its model id goes too.")] = False
) -> dict[str, Any]:
    """Takes an adapter out of memory. The next request that names it reads it again, unless it is to be
    forgotten."""
    state = state_of(request)
    _status(state, name)
    cache = state.model.adapters
    await _done(state, lambda: cache.remove(name) if forget else cache.unload(name), None)
    return {"id": name, "deleted": forget}


@router.post("/v1/adapters/{name}/pin", response_model=AdapterCard, responses=RESPONSES)
async def pin_adapter(name: str, body: PinBody, request: Request) -> dict[str, Any]:
    """A pinned adapter is loaded now, and gives way to no other."""
    state = state_of(request)
    _status(state, name)
    await _done(state, lambda: state.model.adapters.pin(name, body.pinned), "pinned")
    return _find(state, name)


async def _done(state: ServerState, work: Any, param: str | None) -> None:
    """Reading files takes time: beside the event loop. Messages tell no paths of this machine."""
    try:
        await asyncio.to_thread(work)
    except PomonaError as error:
        text = str(error)
        for root in _roots(state):
            text = text.replace(f"{root}/", "")
        raise refused(PomonaError(text) if text != str(error) else error, param=param) from error


def _roots(state: ServerState) -> list[Path]:
    folders = [state.settings.adapter_store, state.model.engine.directory / ADAPTERS_FOLDER]
    return [folder.resolve() for folder in folders if folder is not None and folder.is_dir()]


def _directory(state: ServerState, path: str) -> Path:
    """The adapter's folder. ApiError for everything that does not lie below a root, links followed."""
    outside = ApiError(
        400,
        "'path' names no adapter below the adapter store or the model's adapters.",
        param="path",
        code="bad_path",
    )
    if not path.isprintable():
        raise outside
    for root in _roots(state):
        try:
            directory = (root / path).resolve()
            if directory == root or not directory.is_relative_to(root) or not directory.is_dir():
                continue
            if all((directory / name).resolve().is_relative_to(root) for name in FILES):
                return directory
        except (OSError, ValueError, RuntimeError):  # a loop of links, a name that is too long
            continue
    raise outside


def _check_name(name: str) -> None:
    try:
        check_name(name)
    except PomonaError as error:
        raise refused(error, param="name") from error


def _status(state: ServerState, name: str) -> AdapterStatus:
    for status in state.model.adapters.status():
        if status.name == name:
            return status
    raise ApiError(
        404, "There is no such adapter. GET /v1/adapters lists them.", param="name", code="adapter_not_found"
    )


def _find(state: ServerState, name: str) -> dict[str, Any]:
    return _card(state, _status(state, name))


def _card(state: ServerState, status: AdapterStatus) -> dict[str, Any]:
    return {
        "id": status.name,
        "task": task_of(status.directory),
        "version": status.version,
        "resident": status.resident,
        "pinned": status.pinned,
        "bytes": status.bytes,
        "hits": status.hits,
        "misses": status.loads,
        "default": status.name == state.default_adapter,
    }
