"""From a bf16 model directory to a compressed one: calibrate, palettise, allocate, write (AFM report
6.1-6.4).

    pomona compress smollm2-135m --bits 3.5

Projections become palettes of 4, 3 or 2 bits, or int8, embedding and head int8 rows; norms and biases are
copied. Every finished step lies in a work folder beside the target until the whole is written, so that a
run that was
interrupted goes on where it stopped. Moments are in memory for a few layers at a time, weights for one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pomona.compression.budget import Budget, BudgetError, choose
from pomona.compression.calibrate import CalibrationText, calibration_text
from pomona.compression.constraints import read_constraints
from pomona.compression.moments import HEAD, InputMoments, stream_moments
from pomona.compression.packing import WIDTHS, Plan, pack, plan_matrix, plan_weights
from pomona.compression.palettize import Method
from pomona.compression.report import (
    REPORT_FILE,
    ChoiceReport,
    CompressionReport,
    ModuleReport,
    TensorReport,
)
from pomona.compression.sensitivity import MEASURED_BITS, Reference, measure, predict
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
    BLOCK,
    PALETTE_BITS,
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
HEAD_FILE = "head.npz"
Allocation = Literal["kl", "error"]
LARGE_MODEL_TOKENS = 4_096  # of calibration from a billion parameters on


@dataclass(frozen=True)
class CompressOptions:
    """Exactly one of bits, size and max_kl is a budget (default: 4 bits).

    bits: 4, 3 or 2 for all projections; or a fraction such as 3.5, met by a mix, tables and scales
    counted. size:
    bytes of the weights file. max_kl: predicted nats per token. constraints: see constraints.py.
    allocation: "kl"
    measures the sensitivity of every module; "error" takes its relative error, in no time.
    table_columns: input columns that share a table with 16 rows; a matrix whose width it does not divide
    takes the
    next smaller divisor. calibration: "self", "none" (plain k-means) or a UTF-8 text file.
    """

    bits: float | None = None
    size: int | None = None
    max_kl: float | None = None
    method: Method = "compensated"
    allocation: Allocation = "kl"
    table_columns: int | None = None
    calibration: str = "self"
    constraints: str | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.bits, self.size, self.max_kl)) > 1:
            raise PomonaError("--bits, --size and --max-kl: each is a budget; give one of them")
        if self.bits is not None and not 2 <= self.bits <= 4:
            raise PomonaError(f"--bits {self.bits:g}: must lie in 2 .. 4, such as 4, 3.5 or 3")
        if self.size is not None and self.size < 1:
            raise PomonaError(f"--size {self.size}: must be a number of bytes, such as 70MB")
        if self.max_kl is not None and not self.max_kl > 0:
            raise PomonaError(f"--max-kl {self.max_kl:g}: must be above 0, such as 0.1")
        if self.method not in get_args(Method):
            raise PomonaError(f"--method {self.method}: must be kmeans, weighted or compensated")
        if self.allocation not in get_args(Allocation):
            raise PomonaError(f"--allocation {self.allocation}: must be kl or error")
        if self.table_columns is not None and (self.table_columns < BLOCK or self.table_columns % BLOCK):
            raise PomonaError(f"table_columns {self.table_columns}: must be a multiple of {BLOCK}")
        if self.calibration == "none" and (self.method != "kmeans" or self.needs_sensitivity):
            raise PomonaError(
                "--calibration none: leaves only --method kmeans, and --allocation error for a mix of bits"
            )

    @property
    def uniform_bits(self) -> int | None:
        """The width of all projections, None for a mix."""
        bits = 4.0 if self.bits is None and self.size is None and self.max_kl is None else self.bits
        return int(bits) if bits is not None and bits in PALETTE_BITS else None

    @property
    def needs_sensitivity(self) -> bool:
        return self.max_kl is not None or (self.uniform_bits is None and self.allocation == "kl")


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
    work: Path | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> CompressionReport:
    """Writes the compressed model directory `target`, whole or not at all, and gives the report of it.

    The budget and how it is met: see CompressOptions. method: compensated, or kmeans where there is no
    calibration;
    allocation: kl, or error where there is none. work: the folder of finished steps (default:
    TARGET.work); removed at
    the end, kept by an interruption and taken up by the next run with the same source and options. The
    same input
    gives the same bytes, whatever `threads`. Raises PomonaError: unusable source, unreadable calibration
    text, budget out of reach, target exists, disk full.
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
    )
    started = time.perf_counter()
    source, target = Path(source), Path(target)
    raw = read_json_object(source / CONFIG_FILE)
    config = ModelConfig.from_hf(raw, str(source / CONFIG_FILE))
    if raw.get("quantization_config") is not None:
        raise PomonaError(f"{source}: is compressed already; start from the 16-bit model")
    threads = threads or len(os.sched_getaffinity(0))
    job = _Job(source, config, options, threads, progress)
    plans = plan_weights(config, job.table_columns, job.first_bits())
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
        self.shapes = {
            plan.module: config.linear_shapes()[plan.module]
            for plan in plan_weights(config, self.table_columns, dict.fromkeys(config.linear_shapes(), 4))
            if plan.format == "palette"
        }
        self.pins = (
            read_constraints(options.constraints, self.shapes) if options.constraints is not None else {}
        )
        self.text: CalibrationText | None = None
        self.kl: dict[str, float] = {}
        self.reference: Reference | None = None

    def first_bits(self) -> dict[str, int]:
        """Before the allocation: the widest that may come of it."""
        widest = self.options.uniform_bits or 4
        return dict.fromkeys(self.config.linear_shapes(), widest) | self.pins

    def widths(self, module: str) -> tuple[int, ...]:
        """The widths in which a module is wanted."""
        if module in self.pins:
            fixed = {self.pins[module]}
        elif self.options.uniform_bits is not None:
            fixed = {self.options.uniform_bits}
        else:
            return WIDTHS
        return tuple(
            sorted(fixed | ({MEASURED_BITS} if self.options.needs_sensitivity else set()), reverse=True)
        )

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
        """Packs every projection in every wanted width; a few layers at a time."""
        wanted = {
            module: [w for w in self.widths(module) if not self._is_packed(module, w)]
            for module in self.shapes
        }
        missing = [module for module, widths in wanted.items() if widths]
        total = sum(len(self.widths(module)) for module in self.shapes)
        done = total - sum(map(len, wanted.values()))
        if self.text is not None and (missing or not (self.work.path / HEAD_FILE).is_file()):
            missing.append(HEAD)
        for moments in self._moments(missing):
            if (head := moments.get(HEAD)) is not None:
                self.work.write_arrays(HEAD_FILE, {"diagonal": head.diagonal, "rows": np.array(head.rows)})
            for module in self.shapes:
                if module not in moments:
                    continue
                for width in wanted[module]:
                    plan = plan_matrix(module, self.shapes[module], self.table_columns, width)
                    self._pack(plan, moments[module])
                    done += 1
                    self._tell("palettise", done, total)

    def choose_bits(self) -> dict[str, int]:
        """Projection -> bits, by the budget."""
        fallback = dict.fromkeys(self.config.linear_shapes(), 4)
        if self.options.needs_sensitivity:
            assert self.text is not None  # the options see to it
            self.kl = measure(
                self.source,
                lambda module: self._parts(module, MEASURED_BITS)[0],
                list(self.shapes),
                self.text.held_out or self.text.windows,
                self.work,
                threads=self.threads,
                progress=self.progress,
            )
        if self.options.uniform_bits is not None:
            return fallback | dict.fromkeys(self.shapes, self.options.uniform_bits) | self.pins
        others = sum(
            plan.nbytes
            for plan in plan_weights(self.config, self.table_columns, fallback)
            if plan.module not in self.shapes
        )
        budget = Budget(self.options.bits, self.options.size, self.options.max_kl)
        choices = {module: self.choices(module) for module in self.shapes}
        open_choices = {
            module: [c for c in found if module not in self.pins or c.bits == self.pins[module]]
            for module, found in choices.items()
        }
        weights = sum(rows * columns for rows, columns in self.shapes.values())
        return fallback | choose(open_choices, budget, weights, others)

    def choices(self, module: str) -> list[ChoiceReport]:
        """The widths of a module with their bytes, errors and losses."""
        measured = self._parts(module, MEASURED_BITS)[1] if module in self.kl else 0.0
        found = []
        for width in self.widths(module):
            error = self._parts(module, width)[1]
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
        head: InputMoments | None = None
        with SafetensorsWriter(path, specs, {"format": "pt"}) as writer:
            for done, spec in enumerate(specs):
                self._tell("write", done, len(specs))
                if spec.name not in ready:
                    plan = owner[spec.name]
                    if plan.module in self.shapes:
                        arrays, errors[plan.name] = self._parts(plan.module, plan.bits)
                    else:
                        if plan.format == "int8" and head is None:
                            head = self._head_moments()
                        packed = pack(self.checkpoint, plan, head, self.options.method, self.threads)
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
            reference = Reference.of(self._engine(), windows)
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

    def _moments(self, modules: Sequence[str]) -> Iterator[Mapping[str, InputMoments | None]]:
        if not modules:
            return
        if self.text is None:
            yield dict.fromkeys(modules)
            return
        full = self.options.method == "compensated"
        yield from stream_moments(
            self._engine(), self.text.windows, full=full, modules=modules, progress=self.progress
        )

    def _head_moments(self) -> InputMoments | None:
        """The diagonal of the head's input, for the error of the embedding."""
        arrays = self.work.read_arrays(HEAD_FILE) if self.text is not None else None
        return None if arrays is None else InputMoments(int(arrays["rows"]), arrays["diagonal"])

    def _pack(self, plan: Plan, moments: InputMoments | None) -> None:
        packed = pack(self.checkpoint, plan, moments, self.options.method, self.threads)
        arrays = {name.rpartition(".")[2]: array for name, array in packed.arrays.items()}
        self.work.write_arrays(_file(plan.module, plan.bits), arrays)
        errors = self.work.read_json("errors.json") or {}
        self.work.write_json("errors.json", errors | {_file(plan.module, plan.bits): packed.relative_error})

    def _is_packed(self, module: str, bits: int) -> bool:
        name = _file(module, bits)
        return (self.work.path / name).is_file() and name in (self.work.read_json("errors.json") or {})

    def _parts(self, module: str, bits: int) -> tuple[dict[str, NDArray[Any]], float]:
        arrays = self.work.read_arrays(_file(module, bits))
        errors = self.work.read_json("errors.json") or {}
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
