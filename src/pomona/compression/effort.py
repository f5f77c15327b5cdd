"""How much work a compression takes on, and about how long that will be.

A small model is measured module by module and its tables are fine. From a billion parameters on, work is
bounded: fewer tokens, bits chosen by drafts (packed_modules.py), losses measured for several layers at once
(sensitivity.py). Nothing of this depends on the machine, so the same input gives the same bytes everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pomona.compression.calibrate import CALIBRATION_TOKENS as CALIBRATION
from pomona.compression.options import CompressOptions
from pomona.compression.packing import WIDTHS
from pomona.compression.palettize import SWEEPS
from pomona.compression.sensitivity import TOKENS
from pomona.models.config import ModelConfig

LARGE = 1_000_000_000  # parameters beside the embedding
# Input columns of a table by default. The report shares tables along whole rows; small models need finer
# ones: SmolLM2-135M loses 28% perplexity at 192 columns and 17% at 64, for 0.09 bits per weight.
FINE_COLUMNS, COARSE_COLUMNS = 64, 256
# Of a large model: tokens of calibration, of those that drafts are made by, and of measuring sensitivity; and
# how many measurements each kind of module gets.
CALIBRATION_TOKENS, DRAFT_TOKENS, MEASURED_TOKENS, MEASUREMENTS = 4_096, 1_024, 256, 6

# What one core does in a second (Zen 4, AVX-512), for the estimate: multiply-adds of passes through the model
# and of error compensation; weights of k-means and of error compensation, beside its products.
PASS_RATE, COMPENSATION_RATE, KMEANS_WEIGHTS, COMPENSATED_WEIGHTS = 46e9, 50e9, 20e6, 5e6
WORTH_TELLING = 300.0  # seconds


@dataclass(frozen=True)
class Effort:
    """calibration_tokens, draft_tokens: None where there is no limit of this kind."""

    table_columns: int
    calibration_tokens: int | None
    draft_tokens: int | None
    measured_tokens: int
    layers_together: int
    drafts: bool

    @classmethod
    def of(cls, config: ModelConfig, options: CompressOptions) -> Effort:
        if config.non_embedding_parameters < LARGE:
            return cls(options.table_columns or FINE_COLUMNS, None, None, TOKENS, 1, drafts=False)
        return cls(
            options.table_columns or COARSE_COLUMNS,
            CALIBRATION_TOKENS,
            DRAFT_TOKENS,
            MEASURED_TOKENS,
            math.ceil(config.num_hidden_layers / MEASUREMENTS),
            drafts=options.uniform_bits is None and options.method == "compensated",
        )


def estimate_seconds(
    config: ModelConfig, options: CompressOptions, effort: Effort, threads: int
) -> dict[str, float]:
    """Seconds by phase, as the progress is labelled, on a machine that has nothing else to do."""
    shapes = config.linear_shapes().values()
    weights = sum(rows * columns for rows, columns in shapes)
    layers, head = config.num_hidden_layers, config.vocab_size * config.hidden_size
    widths = 1 if options.uniform_bits is not None or effort.drafts else len(WIDTHS) - 1
    seconds: dict[str, float] = {}
    if options.calibration != "none":
        tokens = effort.calibration_tokens or CALIBRATION
        answered = weights * tokens if options.calibration == "self" else 0
        # The products of inputs with themselves take half as much as the layers again.
        seconds["answer"] = answered / PASS_RATE
        seconds["calibrate"] = 1.5 * weights * tokens / PASS_RATE
    if effort.drafts:
        seconds["draft"] = weights * (effort.draft_tokens or 0) / PASS_RATE + weights / KMEANS_WEIGHTS
    if options.needs_sensitivity:
        starts = range(0, layers, effort.layers_together)
        kinds = len(shapes) // layers
        passes = kinds * sum(layers - start for start in starts) * weights / layers
        heads = kinds * len(starts) * head
        seconds["sensitivity"] = (passes + heads) * effort.measured_tokens / PASS_RATE
    if options.method == "compensated":
        products = (3.5 + SWEEPS) * sum(rows * columns * columns for rows, columns in shapes)
        products += layers * config.intermediate_size**3 / 6  # the largest of the factors
        seconds["palettise"] = widths * (products / COMPENSATION_RATE + weights / COMPENSATED_WEIGHTS)
    else:
        seconds["palettise"] = widths * weights / KMEANS_WEIGHTS
    return {label: value / threads for label, value in seconds.items()}


def announcement(seconds: Mapping[str, float], threads: int) -> str | None:
    """One line about what is going to take long; None where that is not worth a word."""
    total = sum(seconds.values())
    if total < WORTH_TELLING:
        return None
    parts = ", ".join(f"{label} {value / 60:.0f}" for label, value in seconds.items())
    cores = "1 core" if threads == 1 else f"{threads} cores"
    return f"about {total / 60:.0f} minutes on {cores} ({parts})"
