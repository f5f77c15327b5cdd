"""pomona's side of the adapters benchmark: one engine, its adapters, and what is timed on them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import BenchmarkError
from benchmarks.peer import series
from pomona.models.store import resolve
from pomona.runtime.adapters import AdapterCache, LoadedAdapter, load_adapter
from pomona.runtime.engine import Engine, StepInput
from pomona.runtime.scheduler import Request, Scheduler

ROOM = 1 << 32  # a budget that no benchmark fills


class OurAdapters:
    """An engine with adapters; `read` them first."""

    def __init__(self, model: str, threads: int, isa: str) -> None:
        """Raises PomonaError: no such model, an instruction set that this machine lacks."""
        self.engine = Engine.load(resolve(model), threads=threads, isa=isa)
        self.cache = AdapterCache(self.engine, ROOM)
        self.adapters: list[LoadedAdapter] = []
        self.int8_adapters: list[LoadedAdapter] = []  # the same ones
        self.directories: list[Path] = []
        self._scheduler: Scheduler | None = None

    def read(self, directories: Sequence[Path]) -> None:
        """Loads adapters; their names are 0, 1, ..."""
        self.directories = list(directories)
        for number, directory in enumerate(directories):
            self.cache.register(str(number), directory)
            self.adapters.append(self.cache.acquire(str(number)))
            self.int8_adapters.append(load_adapter(self.engine, directory, precision="int8"))

    def decode_seconds(self, adapter: LoadedAdapter | None, tokens: int) -> float:
        """Seconds for writing `tokens` tokens, one by one, from an empty context."""
        ids = series(tokens, self.engine.config.vocab_size)
        with self.engine.new_sequence(adapter) as sequence:
            started = time.perf_counter()
            for token in ids:
                self.engine.step([StepInput(sequence, [token])])
            return time.perf_counter() - started

    def batch_seconds(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[LoadedAdapter | None], tokens: int
    ) -> float:
        """Seconds for answering all prompts together, `tokens` tokens each, greedily."""
        started = time.perf_counter()
        sequences = [self.engine.new_sequence(adapter) for adapter in adapters]
        try:
            steps = [StepInput(s, prompt) for s, prompt in zip(sequences, prompts, strict=True)]
            last = self.engine.step(steps)
            for _ in range(tokens - 1):
                steps = [StepInput(s, [token]) for s, token in zip(sequences, last, strict=True)]
                last = self.engine.step(steps)
            return time.perf_counter() - started
        finally:
            for sequence in sequences:
                sequence.close()

    def scheduler_seconds(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[LoadedAdapter | None], tokens: int
    ) -> float:
        """The same through the scheduler: submitted at once, until the last one is done."""
        names = [None if adapter is None else adapter.name for adapter in adapters]
        requests = [
            Request(tuple(prompt), max_new_tokens=tokens, adapter=name)
            for prompt, name in zip(prompts, names, strict=True)
        ]
        if self._scheduler is None:
            self._scheduler = Scheduler(self.engine, adapters=self.cache)
        started = time.perf_counter()
        tickets = [self._scheduler.submit(request) for request in requests]
        answers = [ticket.result() for ticket in tickets]
        seconds = time.perf_counter() - started
        if any(len(answer.token_ids) != tokens for answer in answers):
            raise BenchmarkError(f"the scheduler ended an answer before {tokens} tokens")
        return seconds

    def swap_seconds(self, repeats: int) -> tuple[list[float], list[float]]:
        """Seconds of taking a resident adapter into a new sequence, and of reading one whose file is in the
        page cache. Each figure is for another adapter than the one before."""
        resident, read = [], []
        for index in range(repeats):
            name = str(index % len(self.adapters))
            started = time.perf_counter()
            self.engine.new_sequence(self.cache.acquire(name)).close()
            resident.append(time.perf_counter() - started)
        for index in range(repeats):
            directory = self.directories[index % len(self.directories)]
            started = time.perf_counter()
            load_adapter(self.engine, directory)
            read.append(time.perf_counter() - started)
        return resident, read

    def correlation(
        self, prompt: Sequence[int], number: int, tokens: Sequence[int], theirs: Sequence[float]
    ) -> float:
        """How well another engine's changes of these tokens' log probabilities by adapter `number` agree
        with ours: Pearson's coefficient."""
        changed, plain = (self._log_probabilities(prompt, a) for a in (self.adapters[number], None))
        ours = (changed - plain)[np.asarray(tokens)]
        return float(np.corrcoef(ours, np.asarray(theirs))[0, 1])

    def _log_probabilities(self, prompt: Sequence[int], adapter: LoadedAdapter | None) -> NDArray[np.float64]:
        logits = np.empty((len(prompt), self.engine.config.vocab_size), np.float32)
        with self.engine.new_sequence(adapter) as sequence:
            self.engine.native.logits(sequence.handle, np.asarray(prompt, np.int32), logits)
        last = logits[-1].astype(np.float64)
        last -= last.max()
        normalised: NDArray[np.float64] = last - np.log(np.exp(last).sum())
        return normalised

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._scheduler is not None:
            self._scheduler.close()
            self._scheduler = None
        self.adapters.clear()
        self.int8_adapters.clear()
