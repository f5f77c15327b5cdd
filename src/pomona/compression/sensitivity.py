"""How much the model's answers change when one module alone is rounded: mean KL on held-out calibration text.

    KL = mean over tokens of  sum over the vocabulary  p (log p - log q)

p is the 16-bit model and q the same with one module packed. Every module is measured at one width; at the
others the KL is predicted from the module's relative error e, to whose square it is proportional as long as
it is small:  KL(bits) = KL(measured) * e(bits)^2 / e(measured)^2. Losses of several modules add up nearly
(the report of a compression has the sum beside the measured whole).

The modules are taken layer by layer, and what enters a layer is kept: nothing below it is computed again. In
a large model the modules of one kind in a few neighbouring layers are packed together and have equal parts in
the loss: in SmolLM2-135M a mix of 3.5 bits out of groups of four layers loses 4% more than one out of single
modules, and parts that go with the squared errors would lose 19% more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    plain: Engine,
    packed: Callable[[str, int], Packed],
    modules: Mapping[str, int],
    windows: Sequence[Sequence[int]],
    work: WorkFolder,
    *,
    tokens: int = TOKENS,
    layers_together: int = 1,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Module -> KL when it alone is what `packed` gives for it and the bits that `modules` says.

    plain: the 16-bit model. modules: projections, model.embed_tokens (and with it the head, where they are
    tied), lm_head. layers_together: so many layers share the measurements, one for each kind of module. What
    `work` holds of an earlier run is not measured again.
    """
    found: dict[str, float] = work.read_json(FILE) or {}
    keys = {module: f"{module}.{bits}" for module, bits in modules.items()}
    missing = [
        group for group in _groups(modules, layers_together) if any(keys[m] not in found for m in group)
    ]
    if missing:
        reference = Reference.of(plain, windows, tokens)
        residuals = [np.zeros((len(w), plain.config.hidden_size), np.float32) for w in reference.windows]
        entered = 0  # the layer that the residuals enter
        left = sum(map(len, missing))
        for group in sorted(missing, key=lambda group: _layer(group[0], plain.config)):
            if progress is not None:
                progress("sensitivity", len(modules) - left, len(modules))
            layer = _layer(group[0], plain.config)
            for window, residual in zip(reference.windows, residuals, strict=True):
                for before in range(entered, layer):
                    plain.run_layers(window, before, before + 1, residual)
            entered = layer
            changed = plain.changed({m: packed(m, modules[m]) for m in group}, WINDOW)
            kl = max(reference.kl(changed, layer, residuals), 0.0) / len(group)
            found |= {keys[module]: kl for module in group}
            left -= len(group)
            work.write_json(FILE, found)
        if progress is not None:
            progress("sensitivity", len(modules), len(modules))
    return {module: found[key] for module, key in keys.items()}


def _groups(modules: Mapping[str, int], layers_together: int) -> list[list[str]]:
    """Modules that are measured together: of one kind, in layers side by side, at one width."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for module, bits in modules.items():
        parts = module.split(".")
        in_layer = len(parts) > 2
        key = (int(parts[2]) // layers_together, parts[-1], bits) if in_layer else (module,)
        groups.setdefault(key, []).append(module)
    return list(groups.values())


def predict(kl: float, measured_error: float, error: float) -> float:
    """The KL at another relative error of the same module."""
    return kl * (error / measured_error) ** 2 if measured_error > 0.0 else 0.0


def _layer(module: str, config: ModelConfig) -> int:
    """The first layer that the module changes; the head comes after the last."""
    if module == "lm_head":
        return config.num_hidden_layers
    return 0 if module == "model.embed_tokens" else int(module.split(".")[2])
