"""Our side of the quality comparison: a model directory, alone or with an adapter, in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.choices import Item
from benchmarks.distributions import ReferenceFile, Sums, compare, log_softmax, own_sums

if TYPE_CHECKING:
    from pomona.runtime.engine import Engine

RECOVERY = Path("adapters") / "recovery"  # in a model directory; what `pomona recover` writes
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def recovery_adapter(directory: Path) -> Path | None:
    """The model's own recovery adapter, if it has one."""
    adapter = directory / RECOVERY
    return adapter if (adapter / ADAPTER_WEIGHTS).is_file() else None


class OurModel:
    """Logits and likelihoods of one of our models. A context manager that gives the memory back."""

    def __init__(self, directory: Path, adapter: Path | None, threads: int) -> None:
        """Raises PomonaError: no such model, an adapter of another base."""
        from pomona.runtime.adapters import load_adapter
        from pomona.runtime.engine import Engine

        self.engine: Engine = Engine.load(directory, threads=threads)
        self._adapter = None if adapter is None else load_adapter(self.engine, adapter)
        self._buffer = np.empty((0, self.engine.config.vocab_size), np.float32)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """[T, V] after each token of a fresh sequence; valid until the next call."""
        from pomona.runtime.engine import BATCH_TOKENS

        ids = np.ascontiguousarray(tokens, np.int32)
        if len(self._buffer) < len(ids):
            self._buffer = np.empty((len(ids), self.engine.config.vocab_size), np.float32)
        with self.engine.new_sequence(self._adapter) as sequence:
            for start in range(0, len(ids), BATCH_TOKENS):
                part = ids[start : start + BATCH_TOKENS]
                self.engine.native.logits(sequence.handle, part, self._buffer[start : start + len(part)])
        return self._buffer[: len(ids)]

    def compare(self, window: Sequence[int], reference: ReferenceFile, index: int) -> Sums:
        """Sums of the window `index` of the reference, whose tokens are `window`."""
        return compare(self.logits(window)[:-1], reference.window(index), window[1:])

    def fill(self, window: Sequence[int], reference: ReferenceFile, index: int) -> Sums:
        """Writes this model's distributions into the reference file, and gives its own sums."""
        log_softmax(self.logits(window)[:-1], reference.window(index))
        return own_sums(reference.window(index), window[1:])

    def log_likelihoods(self, items: Sequence[Item]) -> list[float]:
        """Of every item's scored tokens, natural logarithm."""
        return [self._log_likelihood(item) for item in items]

    def _log_likelihood(self, item: Item) -> float:
        from pomona.runtime.engine import BATCH_TOKENS

        ids = np.ascontiguousarray(item.tokens[:-1], np.int32)
        targets = np.ascontiguousarray(item.tokens[1:], np.int32)
        targets[: item.known - 1] = -1  # of the question nothing is scored
        total = 0.0
        with self.engine.new_sequence(self._adapter) as sequence:
            for start in range(0, len(ids), BATCH_TOKENS):
                part = slice(start, start + BATCH_TOKENS)
                values = self.engine.native.score(sequence.handle, ids[part], targets[part])
                total += float(np.asarray(values).sum(dtype=np.float64))  # 0 where nothing is scored
        return total

    def close(self) -> None:
        del self._adapter, self.engine

    def __enter__(self) -> OurModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def importance(directory: Path, threads: int) -> Mapping[str, Sequence[float]]:
    """Second moments of every projection's inputs, by GGUF tensor name: what llama.cpp's importance matrix
    wants. They come from the model's own answers, as in our compression."""
    from pomona.compression.calibrate import calibration_text
    from pomona.compression.moments import collect_moments
    from pomona.models.export_gguf import gguf_names
    from pomona.models.tokenizer import Tokenizer
    from pomona.runtime.engine import Engine

    engine = Engine.load(directory, threads=threads)
    text = calibration_text(engine, Tokenizer.from_directory(directory))
    found = collect_moments(engine, text.windows, full=False)
    names = gguf_names(engine.config)
    return {
        names[f"{module}.weight"]: values.importance().tolist()
        for module, values in found.items()
        if f"{module}.weight" in names
    }
