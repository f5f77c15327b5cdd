"""From a bf16 model directory to a compressed one: calibrate, palettise, allocate, write (AFM report 6).

    pomona compress smollm2-135m --bits 3.5

Projections, embedding and head become palettes of 4, 3 or 2 bits, or int8 rows; norms and biases are copied.
Every finished step lies in a work folder beside the target until the whole is written, so that a run that was
interrupted goes on where it stopped. Moments are in memory for a few layers at a time, weights for one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pomona.compression.budget import Budget, BudgetError, choose
from pomona.compression.calibrate import CalibrationText, calibration_text
from pomona.compression.constraints import read_constraints
from pomona.compression.moments import HEAD, InputMoments, stream_moments
from pomona.compression.options import Allocation, CompressOptions
from pomona.compression.packing import (
    EMBEDDING_WIDTHS,
    EMBEDDINGS,
    WIDTHS,
    Plan,
    header_bytes,
    pack,
    plan_matrix,
    plan_weights,
)
from pomona.compression.palettize import Method
from pomona.compression.report import (
    REPORT_FILE,
    ChoiceReport,
    CompressionReport,
    ModuleReport,
    TensorReport,
)
from pomona.compression.sensitivity import MEASURED_BITS, TOKENS, Reference, measure, predict
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

# Input columns of a table by default. The report shares tables along whole rows; small models need finer
# ones: SmolLM2-135M loses 28% perplexity at 192 columns and 17% at 64, for 0.09 bits per weight.
FINE_COLUMNS, COARSE_COLUMNS, SMALL_MODEL = 64, 256, 1_000_000_000
_ERRORS = "errors.json"  # in the work folder: relative errors of what is packed
# From a billion parameters on: tokens of calibration, and of measuring sensitivity.
LARGE_MODEL_TOKENS, LARGE_MODEL_MEASURED = 4_096, 256


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
    overwrite: bool = False,
) -> CompressionReport:
    """Writes the compressed model directory `target`, whole or not at all, and gives the report of it.

    The budget and how it is met: see CompressOptions. method: compensated, or kmeans where there is no
    calibration; allocation: kl, or error where there is none. work: the folder of finished steps (default:
    TARGET.work); removed at the end, kept by an interruption and taken up by the next run with the same
    source and options. The same input gives the same bytes, whatever `threads`. Raises PomonaError: unusable
    source, unreadable calibration text, budget out of reach, target exists, disk full.
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
    with (
        ModelDirectoryWriter(target, overwrite=overwrite, need_bytes=need) as writer,
        job.opened(Path(work) if work is not None else target.with_name(f"{target.name}.work")),
    ):
        job.calibrate()
        job.pack_all()
        chosen = job.choose_bits()
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
        small = config.non_embedding_parameters < SMALL_MODEL
        self.table_columns = options.table_columns or (FINE_COLUMNS if small else COARSE_COLUMNS)
        self.calibration_tokens = None if small else LARGE_MODEL_TOKENS
        self.measured_tokens = TOKENS if small else LARGE_MODEL_MEASURED
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
                "version": 1,
                "source": fingerprint(self.checkpoint),
                "options": {**asdict(self.options), "bits": None, "size": None, "max_kl": None},
                "text": _stamp(self.options.calibration),
                "mixed": self.options.uniform_bits is None,
                "uniform": self.options.uniform_bits,
                "pins": self.pins,
            }
            self.work = WorkFolder(folder, key)
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
        more = {} if self.calibration_tokens is None else {"tokens": self.calibration_tokens}
        self.text = calibration_text(
            self._engine(), Tokenizer.from_directory(self.source), text, progress=self.progress, **more
        )
        self.work.write_json("calibration.json", self.text.to_json())

    def pack_all(self) -> None:
        """Packs every matrix in every wanted width; a few layers at a time."""
        wanted = {
            module: [w for w in self.widths(module) if not self._is_packed(module, w)]
            for module in self.shapes
        }
        by_input: dict[str | None, list[str]] = {}
        for module, widths in wanted.items():
            if widths:
                by_input.setdefault(self._input(module), []).append(module)
        total = sum(len(self.widths(module)) for module in self.shapes)
        done = total - sum(map(len, wanted.values()))
        for moments in self._moments([name for name in by_input if name is not None]):
            for name, found in [*moments.items(), (None, None)]:
                for module in by_input.pop(name, ()):
                    for width in wanted[module]:
                        self._pack(module, width, found)
                        done += 1
                        self._tell("palettise", done, total)

    def choose_bits(self) -> dict[str, int]:
        """Module -> bits, by the budget."""
        if self.options.needs_sensitivity:
            assert self.text is not None  # the options see to it
            self.kl = measure(
                self.source,
                lambda module, bits: self._parts(module, bits)[0],
                {module: self.measured_bits(module) for module in self.shapes},
                self.text.held_out or self.text.windows,
                self.work,
                threads=self.threads,
                tokens=self.measured_tokens,
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
        errors = self.work.read_json(_ERRORS) or {}
        found = []
        for width in self.widths(module):
            error = errors[_file(module, width)]
            measured = errors[_file(module, self.measured_bits(module))]
            kl = predict(self.kl[module], measured, error) if module in self.kl else None
            nbytes = plan_matrix(module, self.shapes[module], self.table_columns, width).nbytes
            found.append(ChoiceReport(width, nbytes, error, kl))
        return found

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
                        arrays, errors[plan.name] = self._parts(plan.module, plan.bits)
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
            reference = Reference.of(self._engine(), windows, self.measured_tokens)
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
        return Engine.load(self.source, threads=self.threads, huge_pages=False)

    def _input(self, module: str) -> str | None:
        """Under which name the moments of its input are known. An embedding that is no head reads none."""
        if module not in EMBEDDINGS:
            return module
        return HEAD if module == HEAD or self.config.tie_word_embeddings else None

    def _moments(self, modules: Sequence[str]) -> Iterator[Mapping[str, InputMoments | None]]:
        if self.text is None or not modules:
            yield dict.fromkeys(modules)
            return
        full = self.options.method == "compensated"
        yield from stream_moments(
            self._engine(), self.text.windows, full=full, modules=modules, progress=self.progress
        )

    def _pack(self, module: str, bits: int, moments: InputMoments | None) -> None:
        plan = plan_matrix(module, self.shapes[module], self.table_columns, bits)
        method = "kmeans" if moments is None else self.options.method
        packed = pack(self.checkpoint, plan, moments, method, self.threads)
        arrays = {name.rpartition(".")[2]: array for name, array in packed.arrays.items()}
        self.work.write_arrays(_file(module, bits), arrays)
        errors = self.work.read_json(_ERRORS) or {}
        self.work.write_json(_ERRORS, errors | {_file(module, bits): packed.relative_error})

    def _is_packed(self, module: str, bits: int) -> bool:
        name = _file(module, bits)
        return (self.work.path / name).is_file() and name in (self.work.read_json(_ERRORS) or {})

    def _parts(self, module: str, bits: int) -> tuple[dict[str, NDArray[Any]], float]:
        arrays = self.work.read_arrays(_file(module, bits))
        errors = self.work.read_json(_ERRORS) or {}
        if arrays is None or _file(module, bits) not in errors:
            raise PomonaError(f"{self.work.path}: is damaged; delete it and start again")
        return {f"{module}.{name}": array for name, array in arrays.items()}, errors[_file(module, bits)]

    def _tell(self, label: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(label, done, total)


def _file(module: str, bits: int) -> str:
    return f"{module}.{bits}.npz"


def _stamp(calibration: str) -> Any:
    """What tells one calibration text from another: its content."""
    import hashlib

    if calibration in ("self", "none"):
        return calibration
    try:
        return hashlib.sha256(Path(calibration).read_bytes()).hexdigest()
    except OSError as error:
        raise PomonaError(
            f"{calibration}: cannot be read as UTF-8 text ({error}); give a plain text file"
        ) from error
