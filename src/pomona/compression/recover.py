"""Accuracy recovery: an adapter with which a palettised model answers like its original (AFM report 6.5).

    pomona recover smollm2-135m-3.5bit --teacher smollm2-135m --rank 16

Text (recovery_text.py), the teacher's states, the loop (training/), and the adapter as the base's default,
adapters/recovery. This file joins them; torch is imported where it is needed and comes with `pomona[train]`.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pomona.compression.recovery_text import TextOptions, TextPlan
from pomona.compression.report import REPORT_FILE
from pomona.compression.training.options import Outcome, Point, TrainOptions
from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.locking import locked_folder
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
from pomona.models.palettized import describe, fingerprint, read_quantization_config
from pomona.models.safetensors_file import Checkpoint, SafetensorsWriter, TensorSpec
from pomona.runtime.adapter_file import read_adapter
from pomona.runtime.adapter_pairs import pairs_of, with_rank
from pomona.runtime.adapter_writer import write_adapter

if TYPE_CHECKING:
    from pomona.compression.training.network import Network
    from pomona.compression.training.trainer import OnPoint, Trainer

RANKS = (8, 16, 32)  # of the report
ADAPTER = Path("adapters") / "recovery"


@dataclass(frozen=True)
class RecoveryReport:
    """KL in nats per token to the 16-bit model on held-out text, before and after; `directory`: the adapter,
    None if nothing was better than the base alone and nothing was written."""

    directory: Path | None
    base_fingerprint: str
    start_kl: float
    kl: float
    last_kl: float  # of the last evaluation; `kl` is the best one's, which was kept
    start_same_top: float
    same_top: float
    tokens: int  # trained on, repetitions counted
    seconds: float
    stopped: str  # done, time or early
    curve: tuple[Point, ...]

    @property
    def closed(self) -> float:
        """The share of the KL that is gone."""
        return 1 - self.kl / self.start_kl if self.start_kl > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        return {"version": 1, **asdict(self), "closed": self.closed}


def recover(
    base: Path | str,
    teacher: Path | str,
    *,
    work: Path | str,
    text: TextOptions | None = None,
    train: TrainOptions | None = None,
    target: Path | str | None = None,
    resume: bool = False,
    restart: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    on_point: OnPoint | None = None,
) -> RecoveryReport:
    """Trains BASE/adapters/recovery by distillation from `teacher`, the 16-bit model that `base` was made of.

    With train.tables the tables and row scales are trained too; that makes another base, which is written to
    `target` with the adapter in it.

    work: a folder for the text and the teacher's states, which later runs with the same text use again, and
    for the run itself. resume: go on with a run that was interrupted, restart: forget it; without either
    such a run is an error. Nothing is written to `base` unless the held-out KL has fallen.
    Raises PomonaError: no torch, a base that is not compressed or is of another shape, a teacher that is
    compressed, unusable text, an adapter that is there already, values that are not finite.
    """
    _require_torch()
    import torch

    from pomona.compression.training.trainer import CHECKPOINT

    base, teacher, work = Path(base), Path(teacher), Path(work)
    train = train or TrainOptions()
    _check_pair(base, teacher)
    if train.tables != (target is not None):
        raise PomonaError("recover: trained tables need a target for the new model, and only they do")
    target = base / ADAPTER if target is None else Path(target)
    if target.exists() and not overwrite:
        raise PomonaError(f"{target}: is there already; ask to overwrite it, or move it away")
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    plan = TextPlan(teacher, text or TextOptions())
    mark = describe(base).fingerprint
    folder = work / f"run-{mark[:12]}-{plan.key}-r{train.rank}{'t' if train.tables else ''}"
    with locked_folder(folder):
        unfinished = (folder / CHECKPOINT).exists()
        if unfinished and not resume and not restart:
            raise PomonaError(
                f"{folder}: holds an unfinished run of this base; give --resume to go on, or --restart"
            )
        if resume and not unfinished:
            raise PomonaError(f"{folder}: holds no run to resume; start one without --resume")
        trainer = _trainer(base, teacher, plan, work, folder, train, threads, progress)
        if resume:
            trainer.resume()
        outcome = trainer.run(progress=progress, on_point=on_point)
        written = None
        if outcome.improved:
            record = _record(mark, teacher, plan, trainer, outcome)
            if train.tables:
                written = _write_model(base, target, trainer, record, overwrite)
            else:
                written = _write_adapter(target, trainer, record, overwrite)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return RecoveryReport(
        written,
        mark,
        outcome.start.held_out_kl,
        outcome.best.held_out_kl,
        outcome.points[-1].held_out_kl,
        outcome.start.same_top,
        outcome.best.same_top,
        trainer.step * trainer.tokens_per_step,
        trainer.seconds,
        outcome.stopped,
        outcome.points,
    )


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise PomonaError("recover: needs torch, which is not installed; run: pip install 'pomona[train]'")


def _check_pair(base: Path, teacher: Path) -> None:
    """Refuses what can be seen not to belong together before any work."""
    configs = []
    for directory, packed in ((base, True), (teacher, False)):
        raw = read_json_object(directory / CONFIG_FILE)
        configs.append(ModelConfig.from_hf(raw, str(directory / CONFIG_FILE)))
        quantization = read_quantization_config(raw, str(directory / CONFIG_FILE))
        if packed and quantization is None:
            raise PomonaError(
                f"{directory}: is not compressed, so there is nothing to recover; compress it first"
            )
        if not packed and quantization is not None:
            raise PomonaError(f"{directory}: is compressed; the teacher must be the 16-bit model")
    shapes = [replace(c, bos_token_id=None, eos_token_ids=(), pad_token_id=None) for c in configs]
    if shapes[0] != shapes[1]:
        raise PomonaError(
            f"{base}: has another shape than {teacher}; give the model that it was compressed from"
        )
    vocabularies = [
        (d / "tokenizer.json").read_bytes() for d in (base, teacher) if (d / "tokenizer.json").exists()
    ]
    if len(vocabularies) == 2 and vocabularies[0] != vocabularies[1]:
        raise PomonaError(
            f"{base}: has another tokenizer than {teacher}; give the model that it was compressed from"
        )


def _trainer(
    base: Path,
    teacher: Path,
    plan: TextPlan,
    work: Path,
    folder: Path,
    train: TrainOptions,
    threads: int | None,
    progress: Progress | None,
) -> Trainer:
    """Text, the teacher's states, then the student."""
    import torch

    from pomona.compression.training.network import Network
    from pomona.compression.training.residual import TOKENS, residual_start
    from pomona.compression.training.states import teacher_states
    from pomona.compression.training.tables import read_palettes
    from pomona.compression.training.trainer import Task, Trainer

    store = work / f"text-{plan.key}"
    with locked_folder(store):
        text = plan.prepare(store, threads=threads, progress=progress)
        gc.collect()  # the engine that wrote the text
        network = Network.load(teacher)
        found = {}
        for name, windows in (("held_out", text.held_out), ("train", text.train)):
            label = f"teacher, {name.replace('_', '-')} text"
            found[name] = teacher_states(
                network, windows, store / f"{name}.bf16", label=label, progress=progress
            )
    task = Task(text.train, found["train"], text.held_out, found["held_out"], network.head_VD)
    palettes = read_palettes(base) if train.tables else None
    student = Network.load(base)
    start = None
    if train.start == "residual":
        count = max(TOKENS // text.train.shape[1], 1)
        ids = torch.from_numpy(text.train[:: max(len(text.train) // count, 1)][:count].astype(np.int64))
        start = partial(residual_start, network, student, ids)
    elif train.start == "present":
        start = partial(_take_present, base, student)
    return Trainer(student, task, train, folder, palettes, start)


def _take_present(base: Path, student: Network) -> None:
    """Begins where the base's recovery adapter stands; in another rank if need be."""
    import torch

    file = read_adapter(base / ADAPTER, student.config, describe(base).fingerprint)
    pairs, rng = pairs_of(file), np.random.default_rng(0)
    for group in student.projections():
        for name, low in group.adapters.items():
            if name in pairs:
                a_RK, b_NR = with_rank(pairs[name], len(low.a_RK), rng)
                low.a_RK.copy_(torch.from_numpy(a_RK))
                low.b_NR.copy_(torch.from_numpy(b_NR).mul_(file.scales[name] / low.scale))


def _record(
    mark: str, teacher: Path, plan: TextPlan, trainer: Trainer, outcome: Outcome[Point]
) -> dict[str, Any]:
    """The adapter's pomona.json: for which base, how it was made, of what, and what came of it."""
    path = teacher / PROVENANCE_FILE
    origin = read_json_object(path) if path.is_file() else {}
    best, start = outcome.best, outcome.start
    return {
        "version": 1,
        "task": "recovery",
        "base_fingerprint": mark,
        "teacher_fingerprint": plan.manifest["model"],
        "license": origin.get("license"),
        "recipe": {
            "loss": "full-vocabulary forward KL to the teacher",
            "window": plan.options.window,
            **asdict(trainer.options),
        },
        "text": {"written_by": origin.get("source"), "sources": [asdict(source) for source in plan.sources]},
        "result": {
            "tokens": best.tokens,
            "held_out_kl": {"before": start.held_out_kl, "after": best.held_out_kl},
            "same_top": {"before": start.same_top, "after": best.same_top},
            "stopped": outcome.stopped,
            "curve": [[point.tokens, round(point.held_out_kl, 5)] for point in outcome.points],
        },
    }


def _write_adapter(target: Path, trainer: Trainer, record: Mapping[str, Any], overwrite: bool) -> Path:
    value = trainer.flats["adapter"].value
    pairs = {
        name: (value(f"{name}.a").numpy(), value(f"{name}.b").numpy())
        for name in trainer.student.config.linear_shapes()
    }
    return write_adapter(target, pairs, scale=trainer.options.scale, record=record, overwrite=overwrite)


def _write_model(
    base: Path, target: Path, trainer: Trainer, record: Mapping[str, Any], overwrite: bool
) -> Path:
    """The base with its trained tables and scales as a model of its own, the adapter in it."""
    new: dict[str, NDArray[Any]] = {}
    for name, tables in trainer.tables.items():
        parts = dict(zip(("tables", "table_scales", "row_scales"), tables.stored(), strict=True))
        new |= {f"{name}.weight_{part}": value.numpy() for part, value in parts.items()}
    with ModelDirectoryWriter(target, overwrite=overwrite) as writer:
        with Checkpoint(base) as checkpoint:
            order = sorted(checkpoint.tensors.values(), key=lambda info: info.start)
            specs = [TensorSpec(info.name, info.dtype, info.shape) for info in order]
            with SafetensorsWriter(writer.path / WEIGHTS_FILE, specs, {"format": "pt"}) as file:
                for spec in specs:
                    file.write(spec.name, new.get(spec.name, checkpoint.array(spec.name)))
        with Checkpoint(writer.path) as written:
            mark = fingerprint(written)
        raw = read_json_object(base / CONFIG_FILE)
        raw["quantization_config"] = {**raw["quantization_config"], "base_fingerprint": mark}
        write_json(writer.path / CONFIG_FILE, raw)
        copy_files(base, writer.path, (*TOKENIZER_FILES, *LICENCE_FILES, PROVENANCE_FILE, REPORT_FILE))
        record = {**record, "base_fingerprint": mark, "tables_of": record["base_fingerprint"]}
        _write_adapter(writer.path / ADAPTER, trainer, record, False)
    return target
