"""What the tests of the scheduler share: a tiny model, a watched engine, requests and their references."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.presets import PRESETS
from pomona.runtime.adapters import LoadedAdapter
from pomona.runtime.engine import Engine, StepInput
from pomona.runtime.generate import generate
from pomona.runtime.guided import Guide
from pomona.runtime.sampling import Sampling
from pomona.runtime.scheduler import Completion, Request, Scheduler, Ticket

CONFIG = replace(
    PRESETS["afm-nano"],
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    head_dim=16,
    max_position_embeddings=1024,
)
WAIT = 60.0  # a limit that only a broken program meets
DRAWN = Sampling(temperature=1.0, seed=5)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(int(i) for i in np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length))


class Evens:
    """A stand-in for a compiled guide: even tokens only, and `length` of them are an answer."""

    def __init__(self, length: int, fails_at: int | None = None) -> None:
        self.left, self.count, self.fails_at = length, 0, fails_at

    @property
    def stopped(self) -> bool:
        return self.left == 0

    def mask(self) -> NDArray[np.int32]:
        if self.count == self.fails_at:
            raise PomonaError("the guide is stuck")
        return np.full(CONFIG.vocab_size // 32, 0x55555555, np.int32)

    cut = False

    def begin(self, max_new_tokens: int, *, force: bool = True) -> list[int]:
        return []

    def advance(self, token: int) -> list[int]:
        self.accept(token)
        return [token]

    def accept(self, token: int) -> None:
        assert token % 2 == 0
        self.left -= 1
        self.count += 1


class EvensGuides:
    """In the place of Guides. The guide's text is the length of the answer, or "stuck at N", or nonsense."""

    def start(self, guide: Guide) -> Evens:
        words = guide.text.split()
        if words[0] == "stuck":
            return Evens(1000, fails_at=int(words[-1]))
        if not words[0].isdigit():
            raise PomonaError("regex: cannot be used")
        return Evens(int(words[0]))


GUIDES: Any = EvensGuides()


def alone(engine: Engine, request: Request, adapter: LoadedAdapter | None = None) -> list[int]:
    guide = None if request.guide is None else GUIDES.start(request.guide)
    with engine.new_sequence(adapter) as sequence:
        return list(
            generate(
                engine,
                list(request.prompt_ids),
                sampling=request.sampling,
                max_new_tokens=request.max_new_tokens,
                stop_ids=request.stop_ids,
                sequence=sequence,
                guide=guide,
                lookup=False,
            )
        )


class Steps:
    """Watches an engine's steps: what was in each, with a gate before them and faults on demand."""

    def __init__(self, engine: Engine) -> None:
        self.log: list[list[tuple[str | None, int]]] = []  # per step: adapter and tokens of each input
        self.open = threading.Event()
        self.open.set()
        self.arrived = threading.Event()
        self._left: int | None = None  # steps until the gate closes by itself
        self.fault: Callable[[], BaseException | None] = lambda: None
        self.watch: Callable[[], None] = lambda: None
        self.unwatched = engine.step
        engine.step = self.step  # type: ignore[method-assign]

    def step(self, inputs: Sequence[StepInput]) -> list[int]:
        if self._left == 0:
            self.open.clear()
            self._left = None
        if self._left is None:
            self.arrived.set()
        else:
            self._left -= 1
        assert self.open.wait(WAIT)
        self.log.append([(i.sequence.adapter and i.sequence.adapter.name, len(i.tokens)) for i in inputs])
        self.watch()
        error = self.fault()
        if error is not None:
            raise error
        return self.unwatched(inputs)

    def hold(self, scheduler: Scheduler) -> Ticket:
        """Closes the gate with one small request in the step; what is submitted now comes in together."""
        self.arrived.clear()
        self.open.clear()
        ticket = scheduler.submit(Request((1,), max_new_tokens=1))
        assert self.arrived.wait(WAIT)
        return ticket

    def run(self, count: int) -> None:
        """Opens the gate for `count` steps; the next one waits before it, with its batch made up."""
        self.arrived.clear()
        self._left = count
        self.open.set()
        assert self.arrived.wait(WAIT)

    @property
    def rows(self) -> list[list[int]]:
        return [[count for _, count in step] for step in self.log]


def results(tickets: Sequence[Ticket]) -> list[Completion]:
    return [ticket.result(WAIT) for ticket in tickets]


def answers(tickets: Sequence[Ticket]) -> list[list[int]]:
    return [list(completion.token_ids) for completion in results(tickets)]
