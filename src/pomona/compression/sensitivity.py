"""How much the model's answers change when one module alone is rounded: mean KL on held-out calibration text.

    KL = mean over tokens of  sum over the vocabulary  p (log p - log q)

p is the 16-bit model and q the same with one module packed. Every module is measured at one width; at the
others the KL is predicted from the module's relative error e, to whose square it is proportional as long
as it is
small:  KL(bits) = KL(measured) * e(bits)^2 / e(measured)^2. Losses of several modules add up nearly (the
report of a
compression has the sum beside the measured whole).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.compression.work import WorkFolder
from pomona.models.model_directory import Progress
from pomona.runtime.engine import Engine

TOKENS = 1024  # more change a figure by less than its neighbour differs
WINDOW = 512
MEASURED_BITS = 3  # the loss stands well above the noise, and is still proportional
_BLOCK = 16  # tokens that are summed up together
FILE = "sensitivity.json"

Packed = Mapping[str, NDArray[Any]]  # parts of a packed module by tensor name


@dataclass(frozen=True)
class Reference:
    """What the 16-bit model says about the held-out text, by window: probabilities p [T, V] and the sums
    of p log p over the vocabulary [T]."""

    windows: tuple[tuple[int, ...], ...]
    probabilities: tuple[NDArray[np.float32], ...]
    negative_entropies: tuple[NDArray[np.float64], ...]

    @classmethod
    def of(cls, engine: Engine, windows: Sequence[Sequence[int]], tokens: int = TOKENS) -> Reference:
        """Of the first `tokens` tokens, in windows of at most WINDOW."""
        parts: list[tuple[int, ...]] = []
        left = tokens
        for window in windows:
            for start in range(0, len(window), WINDOW):
                part = tuple(window[start : start + min(WINDOW, left)])
                if part:
                    parts.append(part)
                    left -= len(part)
        probabilities, entropies = [], []
        for part in parts:
            logits = engine.logits(part)
            log_totals = _log_totals(logits)
            p = np.exp(logits - log_totals[:, None].astype(np.float32))
            entropies.append(_mean_logits(p, logits) - log_totals)
            probabilities.append(p)
        return cls(tuple(parts), tuple(probabilities), tuple(entropies))

    def kl(self, engine: Engine) -> float:
        """Mean KL in nats per token of `engine`'s distributions from the reference."""
        total, count = 0.0, 0
        for window, p, entropies in zip(
            self.windows, self.probabilities, self.negative_entropies, strict=True
        ):
            logits = engine.logits(window)
            # sum p log q = sum p logit - log of the sum of exp(logit): one pass of exp, and q is never formed
            total += float((entropies - _mean_logits(p, logits) + _log_totals(logits)).sum())
            count += len(window)
        return total / count


def measure(
    source: Path,
    packed: Callable[[str], Packed],
    modules: Sequence[str],
    windows: Sequence[Sequence[int]],
    work: WorkFolder,
    *,
    threads: int,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Module -> KL when it alone is what `packed` gives. What `work` holds of an earlier run is not measured
    again."""
    found: dict[str, float] = work.read_json(FILE) or {}
    missing = [module for module in modules if module not in found]
    if missing:
        reference = Reference.of(Engine.load(source, threads=threads, huge_pages=False), windows)
        for done, module in enumerate(modules):
            if progress is not None:
                progress("sensitivity", done, len(modules))
            if module in found:
                continue
            engine = Engine.load(source, threads=threads, huge_pages=False, replaced={module: packed(module)})
            found[module] = max(reference.kl(engine), 0.0)
            work.write_json(FILE, found)
        if progress is not None:
            progress("sensitivity", len(modules), len(modules))
    return {module: found[module] for module in modules}


def predict(kl: float, measured_error: float, error: float) -> float:
    """The KL at another relative error of the same module."""
    return kl * (error / measured_error) ** 2 if measured_error > 0.0 else 0.0


def _log_totals(logits_TV: NDArray[np.float32]) -> NDArray[np.float64]:
    """[T] log of the sum of exp(logit). In blocks that stay in the cache."""
    totals = np.empty(len(logits_TV))
    for start in range(0, len(logits_TV), _BLOCK):
        block = logits_TV[start : start + _BLOCK]
        largest = block.max(axis=1, keepdims=True)
        totals[start : start + _BLOCK] = np.log(
            np.exp(block - largest).sum(axis=1, dtype=np.float64)
        ) + largest[:, 0].astype(np.float64)
    return totals


def _mean_logits(p_TV: NDArray[np.float32], logits_TV: NDArray[np.float32]) -> NDArray[np.float64]:
    """[T] sum of p times logit."""
    means = np.empty(len(logits_TV))
    for start in range(0, len(logits_TV), _BLOCK):
        block = slice(start, start + _BLOCK)
        means[block] = (p_TV[block] * logits_TV[block]).sum(axis=1, dtype=np.float64)
    return means
