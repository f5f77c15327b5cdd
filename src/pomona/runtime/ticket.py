"""What goes into the scheduler and what comes out: Request, Ticket, Completion, statistics.

    ticket = scheduler.submit(Request(prompt_ids=(1, 2, 3)))
    for token in ticket: ...            # in a thread, as the tokens come
    async for token in ticket: ...      # the same under asyncio
    completion = ticket.result()        # all of it at the end

Nothing here polls: readers sleep until the scheduler's thread has something for them.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from pomona.errors import PomonaError
from pomona.runtime.sampling import Sampling

if TYPE_CHECKING:
    from pomona.runtime.guided import Guide

MAX_TOP_LOGPROBS = 64
UNLIKELY = -9999.0  # OpenAI's number for a token that is not among the likeliest
FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]


class Overloaded(PomonaError):  # noqa: N818 - the name says what the server is
    """The queue is full. `retry_seconds`: when a place is likely to be free."""

    def __init__(self, waiting: int, retry_seconds: float) -> None:
        super().__init__(
            f"{waiting:,} requests are waiting already; try again in {retry_seconds:.1f} seconds"
        )
        self.retry_seconds = retry_seconds


@dataclass(frozen=True)
class Request:
    """One prompt and how to answer it."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling = Sampling()
    max_new_tokens: int = 512
    stop_ids: frozenset[int] = frozenset()  # they end the answer and are no part of it
    adapter: str | None = None  # its name in the adapter cache
    guide: Guide | None = None
    deadline_seconds: float | None = None  # from submit on; what was said until then is the answer
    lookup: bool = False  # speculation with drafts from the prompt
    logprobs: int | None = None  # keep each token's log probability, and those of so many likeliest ones

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise PomonaError("the prompt has no tokens; give a text")
        if self.max_new_tokens < 1:
            raise PomonaError(f"max_new_tokens = {self.max_new_tokens}: must be at least 1")
        seconds = self.deadline_seconds
        if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
            raise PomonaError(f"deadline_seconds = {seconds}: must be a positive number, or None for none")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_TOP_LOGPROBS:
            raise PomonaError(f"logprobs = {self.logprobs}: must lie in 0 .. {MAX_TOP_LOGPROBS}, or be None")


class TokenLogprobs(NamedTuple):
    """What the model thought of a token: natural logarithms, before penalties, biases, masks, temperature."""

    chosen: float
    top: tuple[tuple[int, float], ...]  # the likeliest tokens, the first one the likeliest


@dataclass(frozen=True)
class Completion:
    """What a request came to. Times in seconds."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    reused_tokens: int  # of the prompt, found in the prefix cache
    queue_seconds: float  # from submit until its prefill began
    prefill_seconds: float  # until the first token
    decode_seconds: float  # from the first token to the last
    adapter_version: int | None  # None without an adapter
    preemptions: int = 0  # how often it gave its memory or its place to others and was taken up again


class Ticket:
    """A request on its way. Any number of readers, each from the first token on; all methods from any thread.

    As a context manager it cancels what is not finished at the end of the block.
    """

    def __init__(self, request: Request, cancel: Callable[[], None]) -> None:
        self.request = request
        self._cancel = cancel
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._sleepers = 0
        # They wait for so many tokens, these for the end:
        self._futures: list[tuple[int, asyncio.Future[None]]] = []
        self._last_futures: list[asyncio.Future[None]] = []
        self._tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []  # one per token at least, if the request asked for them
        self._ended = threading.Event()
        self._completion: Completion | None = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def cancel(self) -> None:
        """Ends the request; its memory is free when the step that runs now is over."""
        if not self.done:
            self._cancel()

    def result(self, timeout: float | None = None) -> Completion:
        """Waits for the end. Raises the request's error, if it has one, and TimeoutError after `timeout`."""
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the request is not finished after {timeout} seconds")
        return self._outcome()

    async def wait(self) -> Completion:
        """result() under asyncio."""
        await self.ended()
        return self._outcome()

    async def ended(self) -> None:
        """Waits for the end, whatever it is: `completion` and `error` tell."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            waiting = self._completion is None
            if waiting:
                self._last_futures.append(future)
        if waiting:
            await future

    async def more(self, at: int, least: int = 1) -> list[int]:
        """The tokens from number `at` on, as soon as there are `least` or no more come; empty: no more came.

        For readers who take what a slow moment has gathered in one piece; errors are left to `error`.
        """
        while True:
            with self._lock:
                new = self._tokens[at:]
                if len(new) >= least or self._completion is not None:
                    return new
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._futures.append((at + least, future))
            await future

    @property
    def completion(self) -> Completion | None:
        """The outcome, also that of a request that failed; None before the end."""
        return self._completion

    @property
    def token_ids(self) -> list[int]:
        """The tokens so far."""
        with self._lock:
            return self._tokens[:]

    @property
    def error(self) -> BaseException | None:
        return self._error

    def __iter__(self) -> Iterator[int]:
        """Token ids as they come; raises the request's error at the end, if it has one."""
        at = 0
        while True:
            with self._lock:
                while at == len(self._tokens) and self._completion is None:
                    self._sleepers += 1
                    self._changed.wait()
                    self._sleepers -= 1
                new = self._tokens[at:]
            yield from new
            at += len(new)
            if not new:
                self._outcome()
                return

    async def __aiter__(self) -> AsyncIterator[int]:
        at = 0
        while new := await self.more(at):
            for token in new:
                yield token
            at += len(new)
        self._outcome()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def _outcome(self) -> Completion:
        if self._error is not None:
            raise self._error
        assert self._completion is not None
        return self._completion

    # --- the scheduler's side -----------------------------------------------------------------------------

    def push(self, token: int, wakeups: Wakeups) -> None:
        with self._lock:
            self._tokens.append(token)
            self._wake(wakeups)

    def finish(self, completion: Completion, error: BaseException | None, wakeups: Wakeups) -> None:
        with self._lock:
            self._error = error
            self._completion = completion
            self._wake(wakeups)
            wakeups.add(self._last_futures)
            self._last_futures = []
        self._ended.set()

    def _wake(self, wakeups: Wakeups) -> None:
        if self._sleepers:
            self._changed.notify_all()
        if self._futures:
            there = math.inf if self._completion is not None else len(self._tokens)
            wakeups.add([future for wanted, future in self._futures if wanted <= there])
            self._futures = [waiting for waiting in self._futures if waiting[0] > there]


@dataclass(frozen=True)
class LaneStats:
    """Of one adapter. All but the first two count from the start."""

    waiting: int
    running: int
    admitted: int
    finished: int
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class SchedulerStats:
    """`waiting`, `running` and `free_tokens` are of now, the others count from the start."""

    waiting: int
    running: int
    free_tokens: int  # room in the key/value cache, as of the last step
    submitted: int
    refused: int  # the queue was full
    finished: Mapping[FinishReason, int]
    steps: int
    failed_steps: int
    rows: int  # tokens that the steps brought, cached ones among them; rows / steps is the mean batch
    new_tokens: int
    preemptions: int
    step_seconds: float  # in Engine.step
    lanes: Mapping[str | None, LaneStats]  # by adapter; None: requests without one


class Wakeups:
    """Sleepers of event loops, gathered over a step so that each loop is called once and not per token."""

    def __init__(self) -> None:
        self._by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}

    def add(self, futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            self._by_loop.setdefault(future.get_loop(), []).append(future)

    def send(self) -> None:
        if not self._by_loop:
            return
        for loop, futures in self._by_loop.items():
            # RuntimeError: the loop was closed, and nobody waits there any more.
            try:
                loop.call_soon_threadsafe(_resolve, futures)
            except RuntimeError:
                continue
        self._by_loop.clear()


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
