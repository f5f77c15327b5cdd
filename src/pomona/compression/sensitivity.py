"""How much the model's answers change when one module alone is rounded: mean KL on held-out calibration text.

    KL = mean over tokens of  sum over the vocabulary  p (log p - log q)

p is the 16-bit model and q the same with one module packed. Every module is measured at one width; at the
others the KL is predicted from the module's relative error e, to whose square it is proportional as long as
it is small:  KL(bits) = KL(measured) * e(bits)^2 / e(measured)^2. Losses of several modules add up nearly
(the report of a compression has the sum beside the measured whole).

The modules are taken layer by layer, and what enters a layer is kept: nothing below it is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.compression.work import WorkFolder
from pomona.models.config import ModelConfig
from pomona.models.model_directory import Progress
from pomona.runtime.engine import Engine

TOKENS = 1024  # more change a figure by less than its neighbour differs
WINDOW = 512
MEASURED_BITS = 3  # the loss stands well above the noise, and is still proportional
FILE = "sensitivity.json"

Packed = Mapping[str, NDArray[Any]]  # parts of a packed module by tensor name


@dataclass(frozen=True)
class Reference:
    """What the 16-bit model says about the held-out text: by window, Engine.distributions [T, V]."""

    windows: tuple[tuple[int, ...], ...]
    distributions: tuple[NDArray[np.uint16], ...]

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
        return cls(tuple(parts), tuple(engine.distributions(part) for part in parts))

    def kl(self, engine: Engine, first: int = 0, residuals: Sequence[NDArray[np.float32]] = ()) -> float:
        """Mean KL in nats per token of `engine`'s distributions from the reference.

        residuals: by window, what enters layer `first`; the layers before it are then those of the reference.
        """
        total, count = 0.0, 0
        for index, (window, p) in enumerate(zip(self.windows, self.distributions, strict=True)):
            total += float(engine.divergences(window, p, first, residuals[index] if first else None).sum())
            count += len(window)
        return total / count


def measure(
    source: Path,
    packed: Callable[[str, int], Packed],
    modules: Mapping[str, int],
    windows: Sequence[Sequence[int]],
    work: WorkFolder,
    *,
    threads: int,
    tokens: int = TOKENS,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Module -> KL when it alone is what `packed` gives for it and the bits that `modules` says.

    modules: projections, model.embed_tokens (and with it the head, where they are tied), lm_head. What `work`
    holds of an earlier run is not measured again.
    """
    found: dict[str, float] = work.read_json(FILE) or {}
    keys = {module: f"{module}.{bits}" for module, bits in modules.items()}
    missing = [module for module, key in keys.items() if key not in found]
    if missing:
        plain = Engine.load(source, threads=threads, huge_pages=False)
        reference = Reference.of(plain, windows, tokens)
        residuals = [np.zeros((len(w), plain.config.hidden_size), np.float32) for w in reference.windows]
        entered = 0  # the layer that the residuals enter
        for number, module in enumerate(sorted(missing, key=lambda name: _layer(name, plain.config))):
            if progress is not None:
                progress("sensitivity", len(modules) - len(missing) + number, len(modules))
            layer = _layer(module, plain.config)
            for window, residual in zip(reference.windows, residuals, strict=True):
                for before in range(entered, layer):
                    plain.run_layers(window, before, before + 1, residual)
            entered = layer
            replaced = {module: packed(module, modules[module])}
            changed = Engine.load(source, threads=threads, huge_pages=False, replaced=replaced)
            found[keys[module]] = max(reference.kl(changed, layer, residuals), 0.0)
            work.write_json(FILE, found)
        if progress is not None:
            progress("sensitivity", len(modules), len(modules))
    return {module: found[key] for module, key in keys.items()}


def predict(kl: float, measured_error: float, error: float) -> float:
    """The KL at another relative error of the same module."""
    return kl * (error / measured_error) ** 2 if measured_error > 0.0 else 0.0


def _layer(module: str, config: ModelConfig) -> int:
    """The first layer that the module changes; the head comes after the last."""
    if module == "lm_head":
        return config.num_hidden_layers
    return 0 if module == "model.embed_tokens" else int(module.split(".")[2])
