"""What the linear layers read: second moments of their inputs, collected by the native engine.

The error that a wrong weight makes in a layer's output is (w - q) H (w - q)^T with H = E[x x^T]; its diagonal
alone says how much a column matters. A text goes through a few layers at a time and the residual stream is
kept in between, so that only the moments of those layers are in memory, and nothing is computed twice.

Shape letters: T tokens, K columns (inputs) of a linear layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pomona import _native
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.model_directory import Progress
from pomona.runtime.engine import Engine

HEAD = "lm_head"  # key of the head's input; the embedding reads none
MEMORY = 1 << 30  # bytes of full moments that are collected together
# Layers that share their input with the one whose name carries its moments.
_SOURCE = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


@dataclass(frozen=True, eq=False)
class InputMoments:
    """Of one input x of K columns, over `rows` tokens. The arrays are not to be changed."""

    rows: int
    diagonal: NDArray[np.float64]  # [K] mean of x_k^2
    full: NDArray[np.float32] | None = None  # [K, K] mean of x x^T
    _factors: dict[tuple[float, float], Factor] = field(default_factory=dict, repr=False)

    @property
    def columns(self) -> int:
        return len(self.diagonal)

    def importance(self) -> NDArray[np.float32]:
        """[K] the diagonal scaled to mean 1. A column that was never active keeps 1e-6: others may use it."""
        mean = float(self.diagonal.mean())
        if mean <= 0.0:
            return np.ones(self.columns, np.float32)
        return np.maximum(self.diagonal / mean, 1e-6).astype(np.float32)

    def factor(self, damping: float, shrink: float, threads: int) -> Factor:
        """Cholesky factor of the damped moment, made once: q, k and v share it. Needs the full moment."""
        key = (damping, shrink)
        if key not in self._factors:
            self._factors[key] = Factor.of(self, damping, shrink, threads)
        return self._factors[key]


@dataclass(frozen=True, eq=False)
class Factor:
    """L with L L^T = keep * H + diag(added) in `order`: small columns first, the last is rounded first."""

    lower: NDArray[np.float32]  # [K, K]
    order: NDArray[np.int32]  # [K]
    keep: float
    added: NDArray[np.float32]  # [K]

    @classmethod
    def of(cls, moments: InputMoments, damping: float, shrink: float, threads: int) -> Factor:
        if moments.full is None:
            raise PomonaError("error compensation needs full moments; collect them with full=True")
        diagonal = moments.full.diagonal().astype(np.float64)
        order = np.argsort(diagonal, kind="stable").astype(np.int32)
        mean = float(diagonal.mean()) or 1.0  # of an input that is always zero: plain rounding
        while True:
            added = (shrink * diagonal + damping * mean).astype(np.float32)
            keep = 1.0 - shrink
            try:
                lower = _native.damped_cholesky(moments.full, keep, added, order, threads)
            except RuntimeError as error:  # not positive definite in float32
                if damping > 1.0:
                    raise PomonaError("moments that no inputs have; collect them again") from error
                damping = max(10.0 * damping, 1e-6)
            else:
                return cls(lower, order, keep, added)


def collect_moments(
    engine: Engine,
    windows: Sequence[Sequence[int]],
    *,
    full: bool,
    modules: Collection[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, InputMoments]:
    """Module -> moments of its input, for `modules` or all linear ones and `lm_head`.

    Modules that read the same input share one object. Everything asked for is in memory at the end; for large
    models walk through stream_moments() instead. Raises PomonaError: an unknown module, no tokens,
    activations that are not finite.
    """
    result: dict[str, InputMoments] = {}
    for part in stream_moments(engine, windows, full=full, modules=modules, progress=progress):
        result.update(part)
    return result


def stream_moments(
    engine: Engine,
    windows: Sequence[Sequence[int]],
    *,
    full: bool,
    modules: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Iterator[dict[str, InputMoments]]:
    """As collect_moments, in parts: so many layers as have full moments of a gigabyte, in their order."""
    config = engine.config
    known = [*config.linear_shapes(), HEAD]
    wanted = known if modules is None else [m for m in known if m in set(modules)]
    unknown = sorted(set(modules or ()) - set(known))
    if unknown:
        raise PomonaError(f"{unknown[0]}: is no linear layer of {engine.directory.name}")
    ids = [list(window) for window in windows if len(window)]
    if not ids:
        raise PomonaError("no calibration tokens; give a longer text")
    low, high = min(map(min, ids)), max(map(max, ids))
    if low < 0 or high >= config.vocab_size:
        raise PomonaError(
            f"token id {low if low < 0 else high} is outside the vocabulary of {config.vocab_size:,}; "
            "the calibration text is another model's"
        )
    by_layer: dict[int, list[str]] = {}
    for module in wanted:
        by_layer.setdefault(_layer(module, config), []).append(module)
    if not by_layer:
        return
    residuals = [np.zeros((len(i), config.hidden_size), np.float32) for i in ids]
    together = max(1, MEMORY // _layer_bytes(config)) if full else config.num_hidden_layers + 1
    stop = max(by_layer) + 1
    total = stop * len(ids)
    for first in range(0, stop, together):
        last = min(first + together, stop)
        here = [module for layer in range(first, last) for module in by_layer.get(layer, ())]
        sources = sorted({_source(module) for module in here})
        engine.native.collect_moments(sources, full)
        try:
            for number, (tokens, residual) in enumerate(zip(ids, residuals, strict=True)):
                if progress is not None:
                    progress("calibrate", first * len(ids) + number * (last - first), total)
                engine.run_layers(tokens, first, last, residual)
        finally:
            sums = engine.native.take_moments()
        means = {name: _mean(name, *sums.pop(name)) for name in sources}
        yield {module: means[_source(module)] for module in here}
    if progress is not None:
        progress("calibrate", total, total)


def _mean(
    name: str, rows: int, squares: NDArray[np.float64], products: NDArray[np.float32] | None
) -> InputMoments:
    diagonal = squares / max(rows, 1)
    if products is not None:
        products /= np.float32(max(rows, 1))
    # |x_j x_k| <= (x_j^2 + x_k^2) / 2: where the diagonal is finite, all is.
    if not np.isfinite(diagonal).all() or (
        products is not None and not np.isfinite(products.diagonal()).all()
    ):
        raise PomonaError(
            f"calibration met activations that are not finite; the checkpoint is damaged, pull it again "
            f"({name})"
        )
    return InputMoments(rows, diagonal, products)


def _layer(module: str, config: ModelConfig) -> int:
    return config.num_hidden_layers if module == HEAD else int(module.split(".")[2])


def _layer_bytes(config: ModelConfig) -> int:
    attended = config.num_attention_heads * config.head_dim
    return 4 * (2 * config.hidden_size**2 + attended**2 + config.intermediate_size**2)


def _source(module: str) -> str:
    head, _, last = module.rpartition(".")
    return f"{head}.{_SOURCE.get(last, last)}" if head else module
