"""From a bf16 model directory to a compressed one: calibrate, palettise, allocate, write (AFM report 6).

    pomona compress smollm2-135m --bits 3.5

Projections, embedding and head become palettes of 4, 3 or 2 bits, or int8 rows; norms and biases are copied.
Every finished step lies in a work folder beside the target until the whole is written, so that a run that was
interrupted goes on where it stopped. Moments are in memory for a few layers at a time, weights for one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pomona.compression.budget import Budget, BudgetError, choose
from pomona.compression.calibrate import CalibrationText, calibration_text, content_stamp, first_tokens
from pomona.compression.constraints import read_constraints
from pomona.compression.effort import Effort, announcement, estimate_seconds
from pomona.compression.moments import HEAD, InputMoments, stream_moments
from pomona.compression.options import Allocation, CompressOptions
from pomona.compression.packed_modules import PackedModules
from pomona.compression.packing import (
    EMBEDDING_WIDTHS,
    EMBEDDINGS,
    WIDTHS,
    Plan,
    header_bytes,
    pack,
    plan_weights,
)
from pomona.compression.palettize import Method
from pomona.compression.report import REPORT_FILE, ChoiceReport, CompressionReport, ModuleReport, TensorReport
from pomona.compression.sensitivity import MEASURED_BITS, Reference, measure
from pomona.compression.work import WorkFolder
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
    QuantizationConfig,
    describe,
    fingerprint,
)
from pomona.models.safetensors_file import Checkpoint, SafetensorsWriter, aligned_order
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.engine import Engine


def compress(
    source: Path | str,
    target: Path | str,
    *,
    bits: float | None = None,
    size: int | None = None,
    max_kl: float | None = None,
    method: Method | None = None,
    allocation: Allocation | None = None,
    table_columns: int | None = None,
    calibration: str | Path = "self",
    constraints: Path | str | None = None,
    embedding_bits: int | None = None,
    work: Path | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    overwrite: bool = False,
) -> CompressionReport:
    """Writes the compressed model directory `target`, whole or not at all, and gives the report of it.

    The budget and how it is met: see CompressOptions. method: compensated, or kmeans where there is no
    calibration; allocation: kl, or error where there is none. work: the folder of finished steps (default:
    TARGET.work); removed at the end, kept by an interruption and taken up by the next run with the same
    source and options. The same input gives the same bytes, whatever `threads`. notice: is told beforehand
    about how long it will take, if that is minutes. Raises PomonaError: unusable source, unreadable
    calibration text, budget out of reach, target exists, disk full.
    """
    blind = calibration == "none"
    options = CompressOptions(
        bits,
        size,
        max_kl,
        method or ("kmeans" if blind else "compensated"),
        allocation or ("error" if blind else "kl"),
        table_columns,
        str(calibration),
        None if constraints is None else str(constraints),
        embedding_bits,
    )
    started = time.perf_counter()
    source, target = Path(source), Path(target)
    raw = read_json_object(source / CONFIG_FILE)
    config = ModelConfig.from_hf(raw, str(source / CONFIG_FILE))
    if raw.get("quantization_config") is not None:
        raise PomonaError(f"{source}: is compressed already; start from the 16-bit model")
    threads = threads or len(os.sched_getaffinity(0))
    job = _Job(source, config, options, threads, progress)
    plans = plan_weights(config, job.table_columns, job.fixed_bits(options.uniform_bits or 4))
    need = sum(plan.nbytes for plan in plans)
    long = announcement(estimate_seconds(config, options, job.effort, threads), threads)
    if notice is not None and long is not None:
        notice(long)
    with (
        ModelDirectoryWriter(target, overwrite=overwrite, need_bytes=need) as writer,
        job.opened(Path(work) if work is not None else target.with_name(f"{target.name}.work")),
    ):
        job.calibrate()
        job.pack_candidates()
        chosen = job.choose_bits()
        job.pack_chosen(chosen)
        plans = plan_weights(config, job.table_columns, chosen)
        errors = job.write_weights(plans, writer.path / WEIGHTS_FILE)
        packed = {plan.module: plan.bits for plan in plans if plan.format != "copy"}
        with Checkpoint(writer.path) as written:
            quantization = QuantizationConfig(fingerprint(written), packed)
        write_json(
            writer.path / CONFIG_FILE, {**config.to_hf(), "quantization_config": quantization.to_json()}
        )
        copy_files(source, writer.path, TOKENIZER_FILES + LICENCE_FILES + (PROVENANCE_FILE,))
        report = job.report(writer.path, chosen, errors, started)
        write_json(writer.path / REPORT_FILE, report.to_json())
    job.work.remove()
    return report


class _Job:
    """One compression: its inputs, its work folder, and the steps in their order."""

    def __init__(
        self,
        source: Path,
        config: ModelConfig,
        options: CompressOptions,
        threads: int,
        progress: Progress | None,
    ) -> None:
        self.source, self.config, self.options = source, config, options
        self.threads, self.progress = threads, progress
        self.effort = Effort.of(config, options)
        self.table_columns, self.drafts = self.effort.table_columns, self.effort.drafts
        self.shapes = {  # of all that can be packed
            plan.module: (plan.shape[0], plan.shape[1])
            for plan in plan_weights(config, self.table_columns, dict.fromkeys(config.linear_shapes(), 4))
            if plan.format != "copy"
        }
        self.pins = (
            read_constraints(options.constraints, self.shapes) if options.constraints is not None else {}
        )
        self.text: CalibrationText | None = None
        self.kl: dict[str, float] = {}

    @property
    def projections(self) -> list[str]:
        return [module for module in self.shapes if module not in EMBEDDINGS]

    def fixed_bits(self, projections: int) -> dict[str, int]:
        """Module -> bits where nothing is chosen: all projections alike."""
        bits: dict[str, int] = dict.fromkeys(self.config.linear_shapes(), projections)
        return bits | dict.fromkeys(EMBEDDINGS, self.options.embedding_bits or 8) | self.pins

    def widths(self, module: str) -> tuple[int, ...]:
        """The widths in which a module is wanted."""
        if module in self.pins:
            return (self.pins[module],)
        uniform = self.options.uniform_bits
        if module not in EMBEDDINGS:
            return WIDTHS if uniform is None else (uniform,)
        if self.options.embedding_bits is not None:
            return (self.options.embedding_bits,)
        # With a budget of bits it stays at 8, but the report says what it could do.
        open_ = self.options.needs_sensitivity or self.options.size is not None
        return EMBEDDING_WIDTHS if open_ else (8,)

    def measured_bits(self, module: str) -> int:
        """The width at which its sensitivity is measured."""
        widths = self.widths(module)
        return MEASURED_BITS if MEASURED_BITS in widths else widths[0]

    @contextmanager
    def opened(self, folder: Path) -> Iterator[None]:
        with Checkpoint(self.source) as self.checkpoint:
            key = {
                "version": 2,
                "source": fingerprint(self.checkpoint),
                "options": {**asdict(self.options), "bits": None, "size": None, "max_kl": None},
                "text": content_stamp(self.options.calibration),
                "mixed": self.options.uniform_bits is None,
                "uniform": self.options.uniform_bits,
                "pins": self.pins,
            }
            self.work = WorkFolder(folder, key)
            self.packed = PackedModules(
                self.checkpoint,
                self.work,
                self.shapes,
                self.table_columns,
                self.options.method,
                self.threads,
            )
            try:
                yield
            except BudgetError:  # another budget can use what was measured
                if not self.kl:
                    self.work.remove()
                raise
            except (PomonaError, OSError):  # nothing can; and a full disk gets its room back
                self.work.remove()
                raise

    def calibrate(self) -> None:
        """The text that says which inputs matter: read from the work folder, or made."""
        if self.options.calibration == "none":
            return
        stored = self.work.read_json("calibration.json")
        if stored is not None:
            self.text = CalibrationText.from_json(stored, str(self.work.path / "calibration.json"))
            return
        text = "self" if self.options.calibration == "self" else Path(self.options.calibration)
        limit = self.effort.calibration_tokens
        more = {} if limit is None else {"tokens": limit}
        self.text = calibration_text(
            self._engine(), Tokenizer.from_directory(self.source), text, progress=self.progress, **more
        )
        self.work.write_json("calibration.json", self.text.to_json())

    def pack_candidates(self) -> None:
        """Packs every matrix in every wanted width, as a draft where these only serve to choose."""
        self._pack({module: self.widths(module) for module in self.shapes}, draft=self.drafts)

    def pack_chosen(self, chosen: Mapping[str, int]) -> None:
        """Packs in earnest what was chosen by drafts."""
        if self.drafts:
            self._pack({module: (chosen[module],) for module in self.shapes}, draft=False)

    def choose_bits(self) -> dict[str, int]:
        """Module -> bits, by the budget."""
        if self.options.needs_sensitivity:
            assert self.text is not None  # the options see to it
            self.kl = measure(
                self._engine(),
                lambda module, bits: self.packed.parts(module, bits, self.drafts)[0],
                {module: self.measured_bits(module) for module in self.shapes},
                self.text.held_out or self.text.windows,
                self.work,
                tokens=self.effort.measured_tokens,
                layers_together=self.effort.layers_together,
                progress=self.progress,
            )
        if self.options.uniform_bits is not None:
            return self.fixed_bits(self.options.uniform_bits)
        fixed = self.fixed_bits(4)
        budget = Budget(self.options.bits, self.options.size, self.options.max_kl)
        chosen_from = self.projections if budget.bits is not None else list(self.shapes)
        plans = plan_weights(self.config, self.table_columns, fixed)
        others = sum(plan.nbytes for plan in plans if plan.module not in chosen_from)
        weights = sum(plan.weights for plan in plans if plan.module in chosen_from)
        choices = {module: self.choices(module) for module in chosen_from}
        return fixed | choose(choices, budget, weights, others + header_bytes(plans))

    def choices(self, module: str) -> list[ChoiceReport]:
        """The widths of a module with their bytes, errors and losses."""
        return self.packed.choices(
            module, self.widths(module), self.kl.get(module), self.measured_bits(module), self.drafts
        )

    def write_weights(self, plans: Sequence[Plan], path: Path) -> dict[str, float]:
        """Writes every tensor; gives the relative error of each weight by name."""
        specs = aligned_order(spec for plan in plans for spec in plan.specs)
        owner = {spec.name: plan for plan in plans for spec in plan.specs}
        errors: dict[str, float] = {}
        ready: dict[str, NDArray[Any]] = {}  # parts of a weight that wait for their turn in the file
        with SafetensorsWriter(path, specs, {"format": "pt"}) as writer:
            for done, spec in enumerate(specs):
                self._tell("write", done, len(specs))
                if spec.name not in ready:
                    plan = owner[spec.name]
                    if plan.module in self.shapes:
                        arrays, errors[plan.name] = self.packed.parts(plan.module, plan.bits)
                    else:
                        packed = pack(self.checkpoint, plan, None, "kmeans", self.threads)
                        arrays, errors[plan.name] = packed.arrays, packed.relative_error
                    ready.update(arrays)
                writer.write(spec.name, ready.pop(spec.name))
            self._tell("write", len(specs), len(specs))
        return errors

    def report(
        self, directory: Path, chosen: Mapping[str, int], errors: Mapping[str, float], started: float
    ) -> CompressionReport:
        modules = tuple(
            ModuleReport(
                module,
                shape,
                module.rpartition(".")[2],
                chosen[module],
                module in self.pins,
                tuple(self.choices(module)),
            )
            for module, shape in self.shapes.items()
        )
        predicted = [c.kl for m in modules for c in m.choices if c.bits == m.bits and c.kl is not None]
        measured = None
        if self.options.needs_sensitivity and self.text is not None:
            windows = self.text.held_out or self.text.windows
            reference = Reference.of(self._engine(), windows, self.effort.measured_tokens)
            measured = reference.kl(Engine.load(directory, threads=self.threads, huge_pages=False))
        description = describe(directory)
        return CompressionReport(
            tuple(
                TensorReport(t.name, t.shape, t.format, t.bits, t.bytes, errors[t.name])
                for t in description.tensors
            ),
            modules,
            asdict(self.options),
            {"source": self.options.calibration, "tokens": self.text.tokens if self.text else 0},
            sum(predicted) if len(predicted) == len(modules) and predicted else None,
            measured,
            description.projection_bits_per_weight,
            description.file_bits_per_weight,
            description.file_bytes,
            sum(info.end - info.start for info in self.checkpoint.tensors.values()),
            time.perf_counter() - started,
        )

    def _engine(self) -> Engine:
        return Engine.load(self.source, threads=self.threads, huge_pages=False, checkpoint=self.checkpoint)

    def _input(self, module: str) -> str | None:
        """Under which name the moments of its input are known. An embedding that is no head reads none."""
        if module not in EMBEDDINGS:
            return module
        return HEAD if module == HEAD or self.config.tie_word_embeddings else None

    def _pack(self, widths: Mapping[str, Sequence[int]], draft: bool) -> None:
        """A few layers at a time, as the moments of their inputs become known."""
        wanted = {
            module: [w for w in found if not self._is_done(module, w, draft)]
            for module, found in widths.items()
        }
        by_input: dict[str | None, list[str]] = {}
        for module, missing in wanted.items():
            if missing:
                by_input.setdefault(self._input(module), []).append(module)
        total = sum(map(len, widths.values()))
        done = total - sum(map(len, wanted.values()))
        label = "draft" if draft else "palettise"
        for moments in self._moments([name for name in by_input if name is not None], draft):
            for name, found_moments in [*moments.items(), (None, None)]:
                for module in by_input.pop(name, ()):
                    whole, sampled = wanted[module], []
                    if draft:
                        measured = self.measured_bits(module)
                        sampled = [width for width in whole if width != measured]
                        whole = [width for width in whole if width == measured]
                    for width in whole:
                        self.packed.add(module, width, found_moments, draft)
                        done += 1
                        self._tell(label, done, total)
                    if sampled:
                        self.packed.estimate(module, sampled, self.measured_bits(module), found_moments)
                        done += len(sampled)
                        self._tell(label, done, total)

    def _is_done(self, module: str, width: int, draft: bool) -> bool:
        if draft and width != self.measured_bits(module):
            return self.packed.knows(module, width, draft)
        return self.packed.has(module, width, draft)

    def _moments(self, modules: Sequence[str], draft: bool) -> Iterator[Mapping[str, InputMoments | None]]:
        if self.text is None or not modules:
            yield dict.fromkeys(modules)
            return
        windows = self.text.windows
        if draft and self.effort.draft_tokens is not None:
            windows = first_tokens(windows, self.effort.draft_tokens)
        full = self.options.method == "compensated" and not draft
        yield from stream_moments(self._engine(), windows, full=full, modules=modules, progress=self.progress)

    def _tell(self, label: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(label, done, total)
