"""pomona as a contestant: the same face as `peer.Peer`, in this process, through the public API."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peer import APART, Measure, series

if TYPE_CHECKING:
    from pomona.runtime.engine import Engine
    from pomona.runtime.engine import Sequence as EngineSequence


class Ours:
    """One of our models in an engine. A context manager that gives the memory back."""

    def __init__(self, model: str | Path, threads: int, isa: str = "auto") -> None:
        """Raises PomonaError: no such model, an instruction set that this machine lacks."""
        from pomona.models.palettized import describe
        from pomona.models.store import resolve
        from pomona.runtime.engine import Engine

        directory = resolve(model)
        description = describe(directory)
        self.name = directory.name
        self.bits = (description.projection_bits_per_weight, description.file_bits_per_weight)
        self.engine: Engine = Engine.load(directory, threads=threads, isa=isa)
        self._filled: dict[tuple[int, int], list[EngineSequence]] = {}

    def seconds(self, measure: Measure) -> float:
        """Seconds of one run."""
        from pomona.runtime.engine import StepInput

        sequences = self._sequences(measure.depth, measure.sequences)
        ids = [self._ids(measure.depth, measure.tokens, index) for index in range(measure.sequences)]
        for sequence in sequences:
            sequence.truncate(measure.depth)
        step = self.engine.step
        started = time.perf_counter()
        if measure.kind == "prefill":
            step([StepInput(sequence, part) for sequence, part in zip(sequences, ids, strict=True)])
        else:
            for tokens in zip(*ids, strict=True):
                step(
                    [StepInput(sequence, [token]) for sequence, token in zip(sequences, tokens, strict=True)]
                )
        return time.perf_counter() - started

    def bandwidth(self) -> float:
        """GB/s at which this machine reads as many bytes as one decoded token does, on as many threads."""
        from pomona import _native

        threads = self.engine.threads
        return float(_native.measure_bandwidth(self.engine.bytes_per_token // threads, threads))

    def bytes_read(self, measure: Measure) -> int:
        """Bytes that one run has to read: all weights in every step, and in decoding the keys and values."""
        keys_and_values = 0
        if measure.kind == "decode":
            last = measure.depth + measure.tokens
            positions = (last * (last + 1) - measure.depth * (measure.depth + 1)) // 2
            keys_and_values = measure.sequences * positions * self.engine.native.kv_bytes_per_token
        return measure.steps * self.engine.bytes_per_token + keys_and_values

    def close(self) -> None:
        for sequences in self._filled.values():
            for sequence in sequences:
                sequence.close()
        self._filled.clear()
        del self.engine

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sequences(self, depth: int, count: int) -> Sequence[EngineSequence]:
        """`count` sequences that hold `depth` tokens (and perhaps more); filled once and kept."""
        from pomona.runtime.engine import StepInput

        if (depth, count) not in self._filled:
            made = self._filled[depth, count] = [self.engine.new_sequence() for _ in range(count)]
            if depth:
                self.engine.step(
                    [StepInput(sequence, self._ids(0, depth, index)) for index, sequence in enumerate(made)]
                )
        return self._filled[depth, count]

    def _ids(self, start: int, count: int, sequence: int) -> list[int]:
        return series(count, self.engine.config.vocab_size, start + sequence * APART)
