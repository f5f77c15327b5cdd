"""/v1/compare: two configurations answer one's own prompts side by side, and nobody knows which is which
until the vote.

A configuration is an adapter (or none), an instruction and sampling settings on the model that is served.
Both answers are made at the same time and shown together when both are there: a stream of each would tell the
faster one. Sides are shuffled per pair, here and not in the page; names and times come with the vote.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from pomona.errors import PomonaError
from pomona.models.store import cache_dir
from pomona.runtime.sampling import Sampling
from pomona.serving.compare_store import (
    Answer,
    CompareStore,
    Pair,
    Session,
    Vote,
    preference_rows,
    vote_rows,
)
from pomona.serving.errors import RESPONSES, ApiError, refused
from pomona.serving.event_stream import EventStream, Write
from pomona.serving.state import ServerState, state_of
from pomona.serving.writing import server_sent

PROGRESS_SECONDS = 0.1  # between two events of how far both answers are

router = APIRouter(prefix="/v1/compare", tags=["compare"], responses=RESPONSES)


class Configuration(BaseModel):
    """adapter: None is the model's default, "base" none. seed: None draws one for every pair."""

    model_config = ConfigDict(extra="forbid", strict=True)

    adapter: Annotated[str, Field(max_length=200)] | None = None
    system: Annotated[str, Field(max_length=20_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=1000)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.5, le=2)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=1 << 53)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2048)] = 256

    def sampling(self) -> Sampling:
        """With a drawn seed where none is set."""
        values = self.model_dump(exclude={"adapter", "system", "max_tokens", "seed"})
        return Sampling(**values, seed=secrets.randbits(48) if self.seed is None else self.seed)


class NewSession(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(max_length=200)] = ""
    a: Configuration
    b: Configuration


class NewPair(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: Annotated[str, Field(min_length=1, max_length=50_000)]


class NewVote(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    vote: Vote


class SessionJson(BaseModel):
    """created: seconds since 1970."""

    id: str
    name: str
    model: str
    a: Configuration
    b: Configuration
    created: float
    pairs: int
    votes: int


class SessionList(BaseModel):
    object: Literal["list"] = "list"
    data: list[SessionJson]


class ShareJson(BaseModel):
    """`count` of `of`, with its interval; value is null where there are no votes."""

    count: int
    of: int
    value: float | None
    low: float
    high: float


class ResultsJson(BaseModel):
    """a_wins, ties and b_wins are parts of all votes, decided is A's part of those that are no tie."""

    votes: int
    open: int
    interval: str
    a_wins: ShareJson
    ties: ShareJson
    b_wins: ShareJson
    decided: ShareJson


class BlindSide(BaseModel):
    text: str


class BlindPair(BaseModel):
    """What may be known before the vote: two texts."""

    id: str
    session: str
    prompt: str
    left: BlindSide
    right: BlindSide


class SessionWithResults(SessionJson):
    results: ResultsJson
    waiting: list[BlindPair]


class OpenSide(BaseModel):
    side: Literal["a", "b"]
    text: str
    finish_reason: str
    tokens: int
    seconds: float
    seed: int
    adapter: str | None


class OpenPair(BaseModel):
    """Everything, after the vote."""

    id: str
    session: str
    prompt: str
    verdict: Literal["a", "b", "tie"]
    left: OpenSide
    right: OpenSide


class Deleted(BaseModel):
    id: str
    deleted: bool


def _store(request: Request) -> CompareStore:
    return CompareStore(state_of(request).settings.compare_db or cache_dir() / "compare.db")


def _found(store: CompareStore, session: str) -> Session:
    found = store.session(session)
    if found is None:
        raise ApiError(404, f"comparison {session[:40]}: there is none of that id", param="session")
    return found


@router.get("/sessions", response_model=SessionList, summary="All comparisons, the newest first")
def list_sessions(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [asdict(session) for session in _store(request).sessions()]}


@router.post(
    "/sessions",
    status_code=201,
    response_model=SessionJson,
    summary="Begin a comparison of two configurations",
)
def new_session(body: NewSession, request: Request) -> dict[str, Any]:
    state = state_of(request)
    if body.a == body.b:
        raise ApiError(400, "a and b are the same; change one of them", param="b")
    for name, side in (("a", body.a), ("b", body.b)):
        try:
            state.model.adapter_for(side.adapter)
        except PomonaError as error:
            raise ApiError(400, str(error), param=f"{name}.adapter") from error
    session = _store(request).new_session(
        body.name.strip(), state.model_id, body.a.model_dump(), body.b.model_dump()
    )
    return asdict(session)


@router.get("/sessions/{session}", response_model=SessionWithResults, summary="A comparison with its results")
def get_session(session: str, request: Request) -> dict[str, Any]:
    store = _store(request)
    found = _found(store, session)
    waiting = [pair for pair in store.pairs(session) if pair.verdict is None]
    return {
        **asdict(found),
        "results": store.results(session).to_json(),
        "waiting": [blind_json(pair) for pair in waiting],
    }


@router.delete(
    "/sessions/{session}", response_model=Deleted, summary="Forget a comparison, its answers and its votes"
)
def delete_session(session: str, request: Request) -> dict[str, Any]:
    store = _store(request)
    _found(store, session)
    return {"id": session, "deleted": store.delete_session(session)}


@router.get(
    "/sessions/{session}/export",
    response_class=Response,
    responses={200: {"content": {"application/jsonl": {}}}},
    summary="Votes as JSONL",
)
def export(session: str, request: Request, rows: Literal["preferences", "votes"] = "preferences") -> Response:
    """preferences: `prompt`, `chosen`, `rejected` of every decided vote. votes: all, with both answers."""
    store = _store(request)
    found = _found(store, session)
    make = preference_rows if rows == "preferences" else vote_rows
    lines = [json.dumps(row, ensure_ascii=False) for row in make(found, store.pairs(session))]
    return Response(
        "".join(line + "\n" for line in lines),
        media_type="application/jsonl",
        headers={"Content-Disposition": f'attachment; filename="compare-{found.id}-{rows}.jsonl"'},
    )


@router.post(
    "/sessions/{session}/pairs",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {}}}},
    summary="Let both answer a prompt",
)
async def new_pair(session: str, body: NewPair, request: Request) -> Response:
    """Server-sent events: `progress` with the pieces of both together, then `pair` (or `error`)."""
    state, store = state_of(request), _store(request)
    state.check_open()
    found = await run_in_threadpool(_found, store, session)
    if not body.prompt.strip():
        raise ApiError(400, "prompt is empty; give one", param="prompt")
    pair = _Pair(state, store, found, body.prompt)
    return EventStream(pair.write, abandon=lambda: None, stall_seconds=state.settings.stall_seconds)


@router.post("/pairs/{pair}/vote", response_model=OpenPair, summary="Vote, and see the names")
def vote(pair: str, body: NewVote, request: Request) -> dict[str, Any]:
    store = _store(request)
    if store.pair(pair) is None:
        raise ApiError(404, f"pair {pair[:40]}: there is none of that id", param="pair")
    voted = store.vote(pair, body.vote)
    if voted is None:
        raise ApiError(409, "the pair has its vote: the names are known", param="vote", code="voted")
    return open_json(voted)


def blind_json(pair: Pair) -> dict[str, Any]:
    sides = {place: {"text": pair.at(place)[1].text} for place in ("left", "right")}
    return {"id": pair.id, "session": pair.session, "prompt": pair.prompt, **sides}


def open_json(pair: Pair) -> dict[str, Any]:
    sides: dict[str, Any] = {}
    for place in ("left", "right"):
        side, answer = pair.at(place)
        sides[place] = {"side": side, **answer.to_json()}
    return {
        "id": pair.id,
        "session": pair.session,
        "prompt": pair.prompt,
        "verdict": pair.verdict,
        **sides,
    }


class _Pair:
    """Two answers at the same time, of which nothing is told before both are there."""

    def __init__(self, state: ServerState, store: CompareStore, session: Session, prompt: str) -> None:
        self._state, self._store, self._session, self._prompt = state, store, session, prompt
        self._sides = [Configuration.model_validate(side) for side in (session.a, session.b)]
        self._pieces = [0, 0]

    async def write(self, write: Write) -> None:
        try:
            await self._write(write)
        except PomonaError as error:
            await write(server_sent("error", refused(error).body))
        except TimeoutError:
            message = "the answers took longer than the server's deadline; ask for shorter ones"
            body = ApiError(504, message, type="server_error", code="deadline_exceeded").body
            await write(server_sent("error", body))

    async def _write(self, write: Write) -> None:
        most = sum(side.max_tokens for side in self._sides)
        tasks = [asyncio.ensure_future(self._answer(place)) for place in range(2)]
        try:
            async with asyncio.timeout(self._state.settings.deadline_seconds):
                pending = set(tasks)
                while pending:
                    done, pending = await asyncio.wait(
                        pending, timeout=PROGRESS_SECONDS, return_when=asyncio.FIRST_EXCEPTION
                    )
                    for task in done:
                        task.result()
                    await write(server_sent("progress", {"pieces": sum(self._pieces), "most": most}))
            answers = [task.result() for task in tasks]
            pair = await run_in_threadpool(
                self._store.add_pair, self._session.id, self._prompt, answers[0], answers[1]
            )
            await write(server_sent("pair", blind_json(pair)))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, place: int) -> Answer:
        side = self._sides[place]
        sampling = side.sampling()
        session = self._state.model.session(
            instructions=side.system or None,
            adapter=side.adapter,
            sampling=sampling,
            max_new_tokens=side.max_tokens,
        )
        started = time.perf_counter()
        async with session.astream(self._prompt) as pieces:
            async for _ in pieces:
                self._pieces[place] += 1
            reply = pieces.reply
        return Answer(
            reply.text,
            reply.finish_reason,
            reply.usage.new_tokens,
            round(time.perf_counter() - started, 4),
            sampling.seed,
            reply.adapter,
        )
