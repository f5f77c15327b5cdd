"""From a bf16 model directory to a compressed one: calibrate, palettise, write (AFM report 6.1-6.3).

    pomona compress smollm2-135m

Projections become palettes of 4, 3 or 2 bits fitted by weighted k-means, embedding and head int8 rows; norms
and biases are copied. One tensor is in memory at a time.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.compression.allocate import Choice, allocate
from pomona.compression.calibrate import calibration_text
from pomona.compression.moments import InputMoments, collect_moments
from pomona.compression.palettize import palettize
from pomona.compression.report import REPORT_FILE, CompressionReport, TensorReport
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.model_directory import (
    CONFIG_FILE,
    LICENCE_FILES,
    PROVENANCE_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    ModelDirectoryWriter,
    Progress,
    copy_files,
    read_json_object,
    write_json,
)
from pomona.models.palettized import (
    BLOCK,
    PALETTE_BITS,
    QuantizationConfig,
    can_pack,
    describe,
    fingerprint,
    int8_specs,
    pack_int8,
    palette_specs,
    unpack_int8,
)
from pomona.models.safetensors_file import (
    Checkpoint,
    SafetensorsWriter,
    TensorSpec,
    aligned_order,
    float32_from_bf16,
)
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import Engine

# Input columns of a table by default. The report shares tables along whole rows; small models need finer
# ones: SmolLM2-135M loses 28% perplexity at 192 columns and 17% at 64, for 0.09 bits per weight.
FINE_COLUMNS, COARSE_COLUMNS, SMALL_MODEL = 64, 256, 1_000_000_000
EMBEDDINGS = ("model.embed_tokens", "lm_head")


@dataclass(frozen=True)
class _Plan:
    """How one weight is stored: `format` palette, int8 or copy."""

    name: str
    shape: tuple[int, ...]
    format: str
    specs: tuple[TensorSpec, ...]
    table_columns: int = 0
    bits: int = 0

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")


def compress(
    source: Path | str,
    target: Path | str,
    *,
    bits: float = 4,
    table_columns: int | None = None,
    calibration: str | Path = "self",
    threads: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> CompressionReport:
    """Writes the compressed model directory `target`, whole or not at all, and gives the report of it.

    bits: 4, 3 or 2 for all projections; or a fraction such as 3.5, which is met by a mix, tables and scales
    counted (allocate.py). table_columns: input columns that share a table with 16 rows; a matrix
    whose width it does not divide takes the next smaller divisor. calibration: "self", "none" (plain k-means)
    or a UTF-8 text file. The same input gives the same bytes, whatever `threads`.
    Raises PomonaError: unusable source, unreadable calibration text, target exists, disk full.
    """
    started = time.perf_counter()
    source = Path(source)
    if not 2 <= bits <= 4:
        raise PomonaError(f"--bits {bits}: must lie in 2 .. 4, such as 4, 3.5 or 3")
    raw = read_json_object(source / CONFIG_FILE)
    config = ModelConfig.from_hf(raw, str(source / CONFIG_FILE))
    if raw.get("quantization_config") is not None:
        raise PomonaError(f"{source}: is compressed already; start from the 16-bit model")
    if table_columns is None:
        table_columns = FINE_COLUMNS if config.non_embedding_parameters < SMALL_MODEL else COARSE_COLUMNS
    if table_columns < BLOCK or table_columns % BLOCK:
        raise PomonaError(f"table_columns {table_columns}: must be a multiple of {BLOCK}")
    linear = config.linear_shapes()
    uniform_bits = dict.fromkeys(linear, int(bits) if bits in PALETTE_BITS else max(PALETTE_BITS))
    plans = _plan(config, table_columns, uniform_bits)
    need = sum(spec.nbytes for plan in plans for spec in plan.specs)
    threads = threads or len(os.sched_getaffinity(0))
    with ModelDirectoryWriter(target, overwrite=overwrite, need_bytes=need) as writer:
        moments = _moments(source, calibration, threads, progress)
        with Checkpoint(source) as checkpoint:
            if bits not in PALETTE_BITS:
                chosen = _allocate(checkpoint, config, table_columns, moments, bits, threads, progress)
                plans = _plan(config, table_columns, chosen)
            errors = _write_weights(checkpoint, plans, moments, writer.path / WEIGHTS_FILE, threads, progress)
            source_bytes = sum(info.end - info.start for info in checkpoint.tensors.values())
        packed = {plan.module: plan.bits for plan in plans if plan.format != "copy"}
        with Checkpoint(writer.path) as written:
            quantization = QuantizationConfig(fingerprint(written), packed)
        write_json(
            writer.path / CONFIG_FILE, {**config.to_hf(), "quantization_config": quantization.to_json()}
        )
        copy_files(source, writer.path, TOKENIZER_FILES + LICENCE_FILES + (PROVENANCE_FILE,))
        report = _report(writer.path, errors, source_bytes, time.perf_counter() - started)
        write_json(writer.path / REPORT_FILE, report.to_json())
    return report


def _plan(config: ModelConfig, table_columns: int, bits: Mapping[str, int]) -> list[_Plan]:
    linear = config.linear_shapes()
    plans = []
    for name, shape in config.tensor_shapes().items():
        module = name.removesuffix(".weight")
        if module in linear and can_pack(*linear[module]):
            columns = _table_columns(shape[1], table_columns)
            specs = palette_specs(module, *linear[module], columns, bits[module])
            plans.append(_Plan(name, shape, "palette", tuple(specs), columns, bits[module]))
        elif module in EMBEDDINGS and can_pack(shape[0], shape[1]):
            plans.append(_Plan(name, shape, "int8", tuple(int8_specs(module, shape[0], shape[1])), bits=8))
        else:
            plans.append(_Plan(name, shape, "copy", (TensorSpec(name, "BF16", shape),)))
    return plans


def _allocate(
    checkpoint: Checkpoint,
    config: ModelConfig,
    table_columns: int,
    moments: Mapping[str, InputMoments],
    bits: float,
    threads: int,
    progress: Progress | None,
) -> dict[str, int]:
    """Bits of every projection for a budget of bits per weight of all projections."""
    linear = config.linear_shapes()
    choices: dict[str, list[Choice]] = {}
    for width in PALETTE_BITS:
        plans = [p for p in _plan(config, table_columns, dict.fromkeys(linear, width)) if p.module in linear]
        for done, plan in enumerate(plans):
            if progress is not None:
                progress(f"try {width} bits", done, len(plans))
            if plan.format == "palette":
                _, error = _pack(checkpoint, plan, moments, threads)
                size = sum(spec.nbytes for spec in plan.specs)
                choices.setdefault(plan.module, []).append(Choice(width, size, error**2))
        if progress is not None:
            progress(f"try {width} bits", len(plans), len(plans))
    weights = sum(math.prod(linear[module]) for module in choices)
    return dict.fromkeys(linear, max(PALETTE_BITS)) | allocate(choices, weights, bits)


def _table_columns(columns: int, wanted: int) -> int:
    """The largest multiple of 64 that divides `columns` and is at most `wanted`."""
    return max(c for c in range(BLOCK, min(columns, max(wanted, BLOCK)) + 1, BLOCK) if columns % c == 0)


def _moments(
    source: Path, calibration: str | Path, threads: int, progress: Progress | None
) -> Mapping[str, InputMoments]:
    """Of every linear layer and the head; empty without calibration."""
    if calibration == "none":
        return {}
    engine = Engine.load(source, threads=threads)
    text = calibration_text(engine, Tokenizer.from_directory(source), calibration, progress=progress)
    return collect_moments(engine, text.windows, full=True, progress=progress)


def _write_weights(
    checkpoint: Checkpoint,
    plans: list[_Plan],
    moments: Mapping[str, InputMoments],
    path: Path,
    threads: int,
    progress: Progress | None,
) -> dict[str, float]:
    """Writes every tensor; gives the relative error of each weight by name."""
    specs = aligned_order(spec for plan in plans for spec in plan.specs)
    owner = {spec.name: plan for plan in plans for spec in plan.specs}
    errors: dict[str, float] = {}
    ready: dict[
        str, NDArray[Any]
    ] = {}  # parts of a weight that wait for their turn in the file: scales, tables
    total = sum(math.prod(plan.shape) for plan in plans)
    done = 0
    with SafetensorsWriter(path, specs, {"format": "pt"}) as writer:
        for spec in specs:
            if spec.name not in ready:
                plan = owner[spec.name]
                parts, errors[plan.name] = _pack(checkpoint, plan, moments, threads)
                ready.update(parts)
                done += math.prod(plan.shape)
                if progress is not None:
                    progress("palettise", done, total)
            writer.write(spec.name, ready.pop(spec.name))
    return errors


def _pack(
    checkpoint: Checkpoint, plan: _Plan, moments: Mapping[str, InputMoments], threads: int
) -> tuple[dict[str, NDArray[Any]], float]:
    """The packed parts of a weight and its relative error."""
    stored, where = checkpoint.array(plan.name), checkpoint.directory
    if stored.dtype != np.uint16 or stored.shape != plan.shape:
        raise PomonaError(
            f"{where}: tensor {plan.name!r} is not BF16 {list(plan.shape)}; pull the model again"
        )
    if ((stored & 0x7F80) == 0x7F80).any():
        raise PomonaError(
            f"{where}: tensor {plan.name!r} holds a value that is not finite; get a sound checkpoint"
        )
    if plan.format == "copy":
        return {plan.name: stored}, 0.0
    weight = float32_from_bf16(stored)
    parts: dict[str, Any]
    if plan.format == "int8":
        if float(np.abs(weight).max()) > 127 * 60_000.0:
            raise PomonaError(f"{where}: a row of {plan.name!r} is too large for its float16 scale")
        parts = pack_int8(weight)
        weigh = moments["lm_head"].importance() if moments else np.ones(plan.shape[1], np.float32)
        difference = unpack_int8(parts["int8"], parts["row_scales"]) - weight
        error, norm = float(((difference**2) @ weigh).sum()), float(((weight**2) @ weigh).sum())
    else:
        given = moments.get(plan.module)
        try:
            result = palettize(
                weight,
                given,
                plan.bits,
                plan.table_columns,
                method="compensated" if given else "kmeans",
                threads=threads,
            )
        except PomonaError as refusal:
            raise PomonaError(f"{where}: tensor {plan.name!r}: {refusal}") from refusal
        return {f"{plan.name}_{part}": array for part, array in result.parts.items()}, result.relative_error
    return {f"{plan.name}_{part}": array for part, array in parts.items()}, math.sqrt(
        error / norm
    ) if norm > 0 else 0.0


def _report(
    directory: Path, errors: dict[str, float], source_bytes: int, seconds: float
) -> CompressionReport:
    description = describe(directory)
    tensors = tuple(
        TensorReport(t.name, t.shape, t.format, t.bits, t.bytes, errors[t.name]) for t in description.tensors
    )
    return CompressionReport(
        tensors,
        description.projection_bits_per_weight,
        description.file_bits_per_weight,
        description.file_bytes,
        source_bytes,
        seconds,
    )
