"""How a feature gets its answers: plans say what to ask, drivers ask it, on the synchronous path or
asyncio's.

A plan is a generator: it yields a batch of requests and is sent their answers, as often as it likes, and
returns the result. So each feature is written once and runs in both worlds.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

from pomona.adapters.tasks.task import Request, Task
from pomona.errors import PomonaError
from pomona.features.guarding import begun
from pomona.features.results import Origin, Place
from pomona.features.router import Consent, Router
from pomona.runtime.answer import context_limit
from pomona.runtime.backend import LanguageModel
from pomona.runtime.model import BASE, Model
from pomona.runtime.reply import FinishReason, Reply, Usage
from pomona.safety.guardrail_policy import Blocked

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_MODEL = "smollm2-135m-4bit"
TOGETHER = 16  # requests of one batch that are on their way at once
UNKNOWN_CONTEXT = 4096  # tokens, of a server's model: nobody tells us
PROMPT_TOKENS = 256  # kept free for the instructions around a content
_default: Model | None = None
_default_lock = threading.Lock()


def default_model() -> Model:
    """The model of those who name none, loaded once."""
    global _default
    with _default_lock:
        if _default is None or _default._engine is None:
            _default = Model.load(DEFAULT_MODEL)
        return _default


@dataclass(frozen=True)
class Desk:
    """Where a task is done: a model, perhaps with the task's adapter, and why this one."""

    task: Task
    model: LanguageModel
    adapter: str | None
    place: Place
    why: str
    fallback: Desk | None = None  # takes over if the server fails

    def tokens(self, text: str) -> int:
        """How many tokens a text has; for a server's model an estimate that is rather too high."""
        if isinstance(self.model, Model):
            return len(self.model.tokenizer.encode(text, parse_special=False))
        return len(text.encode()) // 3 + 1

    @property
    def context(self) -> int:
        return context_limit(self.model.engine) if isinstance(self.model, Model) else UNKNOWN_CONTEXT

    def limit(self, wish: int) -> int:
        """Tokens of content in one request: `wish`, or less where content and answer would not fit."""
        room = self.context - PROMPT_TOKENS
        while wish > 16 and wish + self.task.tokens(wish) > room:
            wish = wish * 3 // 4
        return wish

    def origin(self, answers: Sequence[Done]) -> Origin:
        """Of the result; where the fallback answered for some, that is said."""
        desks = [answer.desk for answer in answers] or [self]
        last = next((desk for desk in desks if desk is not self), desks[-1])
        adapter = next((answer.adapter for answer in answers if answer.adapter), None)
        return Origin(last.place, _name(last.model), adapter, last.why, len(answers))


@dataclass(frozen=True)
class Done:
    """One answer. `value`: what the task's parser makes of it."""

    value: Any
    text: str
    finish_reason: FinishReason
    adapter: str | None
    desk: Desk
    usage: Usage


@dataclass(frozen=True)
class Batch:
    desk: Desk
    requests: tuple[Request, ...]


Plan = Generator[Batch, list[Done], R]


def open_desk(
    task: Task,
    text: str,
    model: LanguageModel | Router | None,
    adapter: str | None,
    consent: Consent,
) -> Desk:
    """Decides who answers. `text` is the whole content: how long it is may decide."""
    if model is None:
        model = default_model()
    if isinstance(model, Router):
        device = _desk(task, model.device, adapter, "device", "")
        decision = model.decide(task.name, device.tokens(text), consent)
        device = replace(device, why=decision.why)
        if decision.place == "device" or model.server is None:
            return device
        failed = replace(device, why="the server failed, so the device answered")
        fallback = failed if model.policy.on_server_error == "device" else None
        # Names of adapters are the device's; the server's model answers as it is.
        return Desk(task, model.server, None, "server", decision.why, fallback)
    if isinstance(model, Model):
        return _desk(task, model, adapter, "device", "the model that was given")
    if not isinstance(model, LanguageModel):
        raise PomonaError("model: must be a Model, a RemoteModel or a Router; see docs/features.md")
    return Desk(task, model, adapter, "server", "the model that was given")


def _desk(task: Task, model: LanguageModel, adapter: str | None, place: Place, why: str) -> Desk:
    if adapter is None and isinstance(model, Model):
        known = {status.name for status in model.adapters.status()}
        adapter = task.name if task.name in known else None
    elif adapter == BASE and not isinstance(model, Model):
        adapter = None
    return Desk(task, model, adapter, place, why)


def sync(plan: Callable[P, Plan[R]]) -> Callable[P, R]:
    """The plan as a function. Several requests of a batch share the model's steps, if no event loop runs
    here.
    """

    @functools.wraps(plan)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        steps = plan(*args, **kwargs)
        try:
            batch = next(steps)
            while True:
                batch = steps.send(_answers(batch))
        except StopIteration as end:
            result: R = end.value
            return result
        finally:
            steps.close()

    return run


def asynchronous(plan: Callable[P, Plan[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The plan as a coroutine function."""

    @functools.wraps(plan)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        steps = plan(*args, **kwargs)
        try:
            batch = next(steps)
            while True:
                batch = steps.send(await _gathered(batch))
        except StopIteration as end:
            result: R = end.value
            return result
        finally:
            steps.close()

    return run


def _answers(batch: Batch) -> list[Done]:
    if len(batch.requests) > 1:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(_gathered(batch))
    return [_one(batch.desk, request) for request in batch.requests]


async def _gathered(batch: Batch) -> list[Done]:
    gate = asyncio.Semaphore(TOGETHER)

    async def one(request: Request) -> Done:
        async with gate:
            return await answer_of(batch.desk, request)

    tasks = [asyncio.ensure_future(one(request)) for request in batch.requests]
    try:
        return await asyncio.gather(*tasks)
    finally:  # a request that failed, or a caller that went away, ends the others: nobody would read them
        for task in tasks:
            task.cancel()


def _one(desk: Desk, request: Request) -> Done:
    session, prompt, form = turn_of(desk, request)
    exchange = begun(desk.model, desk.task.name, request.content)
    try:
        done = done_of(desk, session.respond(prompt, **form))
        if exchange is not None:
            exchange.check(done.text)
        return done
    except Blocked:  # nobody else answers either
        raise
    except PomonaError:
        if desk.fallback is None:
            raise
        return _one(desk.fallback, request)


async def answer_of(desk: Desk, request: Request) -> Done:
    session, prompt, form = turn_of(desk, request)
    exchange = begun(desk.model, desk.task.name, request.content)
    try:
        done = done_of(desk, await session.arespond(prompt, **form))
        if exchange is not None:
            await exchange.acheck(done.text)
        return done
    except Blocked:  # nobody else answers either
        raise
    except PomonaError:
        if desk.fallback is None:
            raise
        return await answer_of(desk.fallback, request)


def turn_of(desk: Desk, request: Request) -> tuple[Any, str, dict[str, Any]]:
    task = desk.task
    prompt = task.prompt(request)
    session = desk.model.session(
        instructions=task.instructions,
        adapter=desk.adapter,
        max_new_tokens=task.tokens(desk.tokens(request.content)),
    )
    return session, prompt, task.form(request)


def done_of(desk: Desk, reply: Reply[Any]) -> Done:
    task = desk.task
    value = reply.content if task.output or task.takes_schema or task.choices else task.parse(reply.text)
    return Done(value, reply.text, reply.finish_reason, reply.adapter, desk, reply.usage)


def _name(model: LanguageModel) -> str:
    if isinstance(model, Model):
        return model.engine.directory.name
    return str(getattr(model, "model", type(model).__name__))
