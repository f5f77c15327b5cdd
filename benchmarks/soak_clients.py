"""The clients of the soak, ordinary, slow, vanishing and hostile, and the one who changes adapters.

`Answers` knows what is right, `Shelf` what an adapter's name may have stood for at a time, `Tally` what came
of every request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkError
from benchmarks.load import HOST, Connection, LoadError, Reply
from benchmarks.servers import PomonaServer
from benchmarks.soak_hostile import HOSTILE

NAMES = ("red", "green", "blue", "black")
PROMPTS = (
    "Name three apples.",
    "Name three apples, and say which of them keeps best through a long winter in a dry cellar.",
    "Write one sentence about the sea.",
    "What should a guest bring to a birthday party of a child that likes trains, drums and the colour green?",
)
SHORT, LONG = 12, 64  # tokens of an answer
REPLY_SECONDS = 120.0
LAST_SECONDS = 180.0  # for what is under way when the time is over

Directory = int | None  # the adapter directory behind an answer; None: the base alone


class Answers:
    """What the engine alone says to every prompt under every directory."""

    def __init__(self, texts: dict[tuple[Directory, int, int], str]) -> None:
        self._texts = texts

    @classmethod
    def compute(cls, model: Path, directories: Sequence[Path], *, threads: int) -> Answers:
        """Greedy answers, one at a time, without a prefix cache."""
        from pomona.runtime.model import BASE, Model

        texts = {}
        with Model.load(str(model), threads=threads, prefix_cache=False) as loaded:
            for number, name in [(None, BASE), *((n, path.name) for n, path in enumerate(directories))]:
                for index, prompt in enumerate(PROMPTS):
                    for tokens in (SHORT, LONG):
                        messages = [{"role": "user", "content": prompt}]
                        text = loaded.respond(messages, max_new_tokens=tokens, adapter=name)
                        texts[number, index, tokens] = text
        for index in range(len(PROMPTS)):
            said = {texts[number, index, LONG] for number in (None, *range(len(directories)))}
            if len(said) <= len(directories):
                raise BenchmarkError(f"prompt {index}: two adapters say the same, a mix-up would not show")
        return cls(texts)

    def text(self, directory: Directory, prompt: int, tokens: int) -> str:
        return self._texts[directory, prompt, tokens]


@dataclass
class Change:
    """What a name stands for from some moment between `began` and `ended` on."""

    began: float
    directory: Directory  # None: the name is not known
    version: int | None = None  # as the server counts it; None as long as it has not told
    ended: float = float("inf")  # as long as it is under way


class Shelf:
    """Which directories each name stood for, as far as one can know from outside."""

    def __init__(self) -> None:
        self._changes = {name: [Change(0.0, None, None, 0.0)] for name in NAMES}

    def now(self, name: str) -> Directory:
        return self._changes[name][-1].directory

    def begin(self, name: str, directory: Directory) -> Change:
        """Notes a change that is under way; set its `ended` and its version when it is done."""
        change = Change(time.perf_counter(), directory)
        self._changes[name].append(change)
        return change

    def between(self, name: str, start: float, end: float, version: int | None = None) -> set[Directory]:
        """Everything that the name may have stood for at some moment of this time; with `version`, only what
        the server may call so."""
        changes = self._changes[name]
        until = [*(change.ended for change in changes[1:]), float("inf")]
        return {
            change.directory
            for change, last in zip(changes, until, strict=True)
            if change.began <= end and last >= start and version in (None, change.version or version)
        }


@dataclass
class Tally:
    """What came of all requests. Lists hold one line for each fault."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)  # nonsense that was not refused as it should be

    def counts(self) -> dict[str, int]:
        return dict(sorted(self.kinds.items()))


@dataclass
class Soak:
    """What all clients share."""

    server: PomonaServer
    answers: Answers
    directories: Sequence[Path]
    tally: Tally
    shelf: Shelf
    end: float
    model: str

    @property
    def over(self) -> bool:
        return time.perf_counter() >= self.end


async def soak(
    server: PomonaServer,
    answers: Answers,
    directories: Sequence[Path],
    tally: Tally,
    *,
    clients: int,
    seconds: float,
    seed: int,
    pace: float,
) -> None:
    """Runs everybody for `seconds`, then asks once more for everything in peace. Faults go into `tally`."""
    model = directories[0].parent.parent.name
    state = Soak(server, answers, directories, tally, Shelf(), time.perf_counter() + seconds, model)
    for number, name in enumerate(NAMES):
        await put(state, name, number % len(directories))
    tasks = [asyncio.create_task(client(state, number, seed)) for number in range(clients)]
    tasks.append(asyncio.create_task(librarian(state, random.Random(f"librarian {seed}"), pace)))
    _, unfinished = await asyncio.wait(tasks, timeout=seconds + LAST_SECONDS)
    for task in unfinished:
        task.cancel()
        tally.lost.append("a client still waits for its answer long after the end")
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error
    if server.running:
        await last_round(state)
    else:
        tally.lost.append(f"the server ended by itself: {server.last_line()}")


async def client(state: Soak, number: int, seed: int) -> None:
    """One client until the time is over: each of its requests is of another kind."""
    dice = random.Random(f"client {number} {seed}")
    connection: Connection | None = None
    while not state.over and state.server.running:
        kind = dice.random()
        try:
            if connection is None or not connection.fresh:
                if connection is not None:
                    connection.close()
                connection = await Connection.open(state.server.port)
            if kind < 0.70:
                await ordinary(state, connection, dice)
            elif kind < 0.82:
                await vanishing(state, connection, dice)
            elif kind < 0.90:
                await slow(state, dice)
            else:
                await hostile(state, dice)
        except (LoadError, OSError, TimeoutError) as error:
            state.tally.lost.append(f"client {number}: {error!r}"[:300])
            connection = None
            await asyncio.sleep(0.5)
    if connection is not None:
        connection.close()


@dataclass(frozen=True)
class _Asked:
    """A request whose right answers are known."""

    prompt: int
    tokens: int
    name: str | None
    body: bytes
    stream: bool


def _question(state: Soak, dice: random.Random, tokens: int, *, stream: bool) -> _Asked:
    prompt = dice.randrange(len(PROMPTS))
    name = dice.choice((*NAMES, *NAMES, None))
    body: dict[str, Any] = {
        "model": f"{state.model}:{name or 'base'}",
        "messages": [{"role": "user", "content": PROMPTS[prompt]}],
        "max_tokens": tokens,
        "temperature": 0,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return _Asked(prompt, tokens, name, json.dumps(body).encode(), stream)


async def ordinary(state: Soak, connection: Connection, dice: random.Random) -> None:
    """A client that waits for its answer, all at once or as a stream."""
    asked = _question(state, dice, dice.choice((SHORT, SHORT, LONG)), stream=dice.random() < 0.5)
    started = time.perf_counter()
    reply = await asyncio.wait_for(connection.ask("POST", "/v1/chat/completions", asked.body), REPLY_SECONDS)
    await judge(state, asked, started, reply, "streamed" if asked.stream else "at once")


async def vanishing(state: Soak, connection: Connection, dice: random.Random) -> None:
    """A client that goes away before the answer or in the middle of it."""
    asked = _question(state, dice, LONG, stream=dice.random() < 0.8)
    await connection.send("POST", "/v1/chat/completions", asked.body)
    with contextlib.suppress(asyncio.TimeoutError, LoadError):
        async with asyncio.timeout(dice.choice((0.0, 0.05, 0.3, 1.0))):
            status, headers = await connection.head()
            state.tally.statuses[status] += 1
            async for _ in connection.body(headers):
                pass
    connection.vanish()
    state.tally.kinds["requests: client vanished"] += 1


async def slow(state: Soak, dice: random.Random) -> None:
    """A client that reads a long answer drop by drop, through a small buffer."""
    asked = _question(state, dice, LONG, stream=True)
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    narrow.setblocking(False)
    await asyncio.get_running_loop().sock_connect(narrow, (HOST, state.server.port))
    reader, writer = await asyncio.open_connection(sock=narrow, limit=1 << 16)
    async with Connection(reader, writer, state.server.port) as connection:
        started = time.perf_counter()
        await connection.send("POST", "/v1/chat/completions", asked.body)
        pause = asyncio.create_task(_drip(writer.transport, dice))
        try:
            reply = await asyncio.wait_for(connection.receive(started), REPLY_SECONDS)
        finally:
            pause.cancel()
        # The first token may have waited in a buffer: every version until the end may be right.
        await judge(state, asked, started, reply, "read slowly", until=reply.ended)


async def _drip(transport: asyncio.Transport | Any, dice: random.Random) -> None:
    """Lets the transport read for a moment now and then, for some seconds in all."""
    for _ in range(dice.randrange(10, 40)):
        transport.pause_reading()
        await asyncio.sleep(0.1)
        transport.resume_reading()
        await asyncio.sleep(0.01)


async def hostile(state: Soak, dice: random.Random) -> None:
    """A request that must be refused, and nothing else must happen."""
    nonsense = dice.choice(HOSTILE)
    async with await Connection.open(state.server.port) as connection:
        fault = await asyncio.wait_for(nonsense.send(connection, state.model), REPLY_SECONDS)
    state.tally.kinds["requests: nonsense, refused" if fault is None else "requests: nonsense, taken"] += 1
    if fault is not None:
        state.tally.taken.append(f"{nonsense.name}: {fault}")


async def judge(
    state: Soak, asked: _Asked, started: float, reply: Reply, kind: str, until: float | None = None
) -> None:
    """Whether a reply is right, given what its adapter's name stood for since the request."""
    tally = state.tally
    tally.statuses[reply.status] += 1
    first = until or (reply.times[0] if reply.times else reply.ended)
    adapter, version = _adapter(reply)
    possible: set[Directory] = {None}
    if asked.name is not None:
        possible = state.shelf.between(asked.name, started, first, version)
    what = f"{asked.name or 'base'}, prompt {asked.prompt}, {asked.tokens} tokens, {kind}"
    if reply.status == 429:
        if "retry-after" not in reply.headers:
            tally.lost.append(f"{what}: 429 without Retry-After")
        tally.kinds["requests: refused as the queue was full"] += 1
        await asyncio.sleep(min(5.0, float(reply.headers.get("retry-after", 1))))
    elif None in possible and _names(reply, asked.name):
        tally.kinds["requests: adapter removed before its turn"] += 1
    elif reply.status != 200 or reply.failure is not None or not reply.whole:
        tally.lost.append(f"{what}: status {reply.status}, {reply.error() or reply.body[:200]!r}")
    else:
        text, finish = _said(reply)
        if asked.name is not None:
            possible.discard(None)
        right = {state.answers.text(directory, asked.prompt, asked.tokens) for directory in possible}
        if text not in right or adapter != asked.name:
            candidates = ", ".join(sorted(map(str, possible))) or "none"
            tally.wrong.append(
                f"{what}: by adapter {adapter}, version {version}, which could be directory {candidates}: "
                f"{text!r}"
            )
        if finish not in ("length", "stop"):
            tally.lost.append(f"{what}: ended by {finish}")
        tally.kinds[f"requests: answered, {kind}"] += 1


def _said(reply: Reply) -> tuple[str, str | None]:
    """Text and finish reason of a chat completion, streamed or not."""
    if reply.body:
        choice = json.loads(reply.body)["choices"][0]
        return choice["message"]["content"] or "", choice["finish_reason"]
    return reply.text, reply.finish_reason


def _names(reply: Reply, name: str | None) -> bool:
    """Whether it is a refusal that is about this adapter."""
    message = str(reply.error().get("message", ""))
    return name is not None and name in message and (400 <= reply.status < 500 or not reply.times)


def _adapter(reply: Reply) -> tuple[str | None, int | None]:
    """Name and version of the adapter that the reply says it was made with."""
    if reply.body:
        with contextlib.suppress(ValueError, AttributeError):
            found = json.loads(reply.body)
            return found.get("adapter"), found.get("adapter_version")
    return reply.adapter or (None, None)


async def librarian(state: Soak, dice: random.Random, pace: float) -> None:
    """Loads, replaces, unloads and removes adapters at random."""
    while not state.over and state.server.running:
        await asyncio.sleep(pace * dice.uniform(0.5, 1.5))
        name = dice.choice(NAMES)
        gone = [other for other in NAMES if state.shelf.now(other) is None]
        kind = dice.random()
        if gone and kind < 0.5:
            name = dice.choice(gone)
        if (there := state.shelf.now(name)) is None or kind < 0.7:
            others = [number for number in range(len(state.directories)) if number != there]
            await put(state, name, dice.choice(others))
        elif kind < 0.85:  # out of memory; the next request that names it reads it again
            await changed(state, "unloaded", "DELETE", f"/v1/adapters/{name}")
        else:
            change = state.shelf.begin(name, None)
            await changed(state, "removed", "DELETE", f"/v1/adapters/{name}?forget=true", change=change)


async def put(state: Soak, name: str, number: int) -> None:
    """Loads a directory under a name that is not known, or replaces what the name stands for."""
    there, path = state.shelf.now(name), state.directories[number].name
    change = state.shelf.begin(name, number)
    if there is None:
        await changed(state, "loaded", "POST", "/v1/adapters", {"name": name, "path": path}, change=change)
    else:
        await changed(state, "replaced", "PUT", f"/v1/adapters/{name}", {"path": path}, change=change)


async def changed(
    state: Soak,
    what: str,
    method: str,
    where: str,
    body: dict[str, str] | None = None,
    *,
    change: Change | None = None,
) -> None:
    """Asks for a change of adapters, and notes when it was done. Without an answer it stays under way."""
    try:
        async with await Connection.open(state.server.port) as connection:
            reply = await asyncio.wait_for(connection.ask(method, where, body), REPLY_SECONDS)
    except (LoadError, OSError, TimeoutError) as error:
        state.tally.lost.append(f"{method} {where}: {error!r}"[:300])
        return
    if change is not None:
        change.ended = time.perf_counter()
        with contextlib.suppress(ValueError, AttributeError):
            change.version = json.loads(reply.body).get("version")
    state.tally.kinds[f"adapters {what}"] += 1
    if reply.status != 200:
        state.tally.lost.append(f"{method} {where}: {reply.status} {reply.body[:200]!r}")


async def last_round(state: Soak) -> None:
    """When all is quiet: every prompt with every name, and the server calls itself healthy."""
    dice = random.Random(0)
    async with await Connection.open(state.server.port) as connection:
        for _ in range(4 * len(PROMPTS)):
            await ordinary(state, connection, dice)
        for path in ("/health", "/ready", "/metrics", "/v1/models", "/v1/adapters"):
            reply = await connection.ask("GET", path)
            if reply.status != 200:
                state.tally.lost.append(f"GET {path}: {reply.status} after the soak")
