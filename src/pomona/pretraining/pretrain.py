"""A whole run: prepare, train stage after stage, export.

    OUT/run.json            the recipe that the folder belongs to
    OUT/text, tokenizer, data, prepared.json        see prepare.py
    OUT/stages/NAME/        checkpoints, curve.csv, curve.svg; pruned/ after a stage of pruning
    OUT/teacher/            a teacher's tokens (teacher_ids.py)
    OUT/model/              the end product, a Hugging Face directory; OUT/model.gguf if asked for
    OUT/report.json

Under torchrun every process calls `pretrain`; the first one writes the files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pomona.errors import PomonaError
from pomona.line_chart import Line, line_chart
from pomona.models.locking import locked_folder
from pomona.models.model_directory import Progress, read_json_object, write_json
from pomona.pretraining.curve import Point, read_curve
from pomona.pretraining.export import export_checkpoint
from pomona.pretraining.flops import peak_flops
from pomona.pretraining.prepare import Prepared, prepare, read_prepared
from pomona.pretraining.pruning import FOLDER as PRUNED
from pomona.pretraining.pruning import prune_checkpoint
from pomona.pretraining.recipe import Recipe, StageSettings, difference
from pomona.pretraining.start import ModelWeights

if TYPE_CHECKING:
    from pomona.pretraining.training.loss import LossFunction

RUN, REPORT, MODEL = "run.json", "report.json", "model"
SAMPLE_TOKENS = 64

OnPoint = Callable[[StageSettings, Point], None]


@dataclass(frozen=True)
class StageReport:
    """What came of one stage. utilisation: model FLOP over what the devices can make, median of steps."""

    name: str
    steps: int
    tokens: int
    dropped: int
    loss: float  # mean of the last twentieth of the steps
    validation_loss: float
    tokens_per_second: float | None
    utilisation: float | None
    seconds: float


@dataclass(frozen=True)
class RunReport:
    """The whole run. sample: the recipe's words, and how the model goes on (greedily, in our runtime);
    None for a shape that only other engines run. left_out: sources whose text was not there."""

    model: Path
    gguf: Path | None
    parameters: int
    vocab_size: int
    stages: tuple[StageReport, ...]
    sample: str | None
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "model": str(self.model),
            "gguf": None if self.gguf is None else str(self.gguf),
            "stages": [vars(stage) for stage in self.stages],
            "left_out": list(self.left_out),
        }


def pretrain(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    restart: bool = False,
    gguf: bool = False,
    losses: dict[str, LossFunction] | None = None,
    progress: Progress = lambda label, done, total: None,
    on_start: Callable[[Prepared], None] = lambda prepared: None,
    on_point: OnPoint = lambda stage, point: None,
) -> RunReport | None:
    """Runs the recipe in the folder `out`; None in all processes but the first.

    resume: go on with the run that is there. restart: forget it. losses: stage -> the loss that replaces
    next-token cross-entropy there.

    PomonaError: a run is there and neither is asked for, it belongs to another recipe, a checkpoint is
    corrupt, text is missing, another process works there, or torch is not installed.
    """
    try:
        from pomona.pretraining.training import stage as training
    except ImportError as error:
        raise PomonaError(f"pre-training needs {error.name}: pip install 'pomona[train]'") from error
    out = out.expanduser().absolute()
    processes = training.start_processes()
    with ExitStack() as stack:
        if processes.main:
            stack.enter_context(locked_folder(out))
            _claim(recipe, out, resume=resume, restart=restart)
            prepared = prepare(recipe, out, progress=progress)
            on_start(prepared)
        processes.wait()
        prepared = read_prepared(out)
        last: Path | None = None
        for stage in recipe.stages:
            last = _stage(
                recipe,
                stage,
                out,
                last,
                prepared,
                processes,
                (losses or {}).get(stage.name),
                progress,
                on_point,
            )
        assert last is not None
        return _finish(recipe, out, last, prepared, gguf, progress) if processes.main else None


def use_threads(threads: int | None) -> None:
    """CPU threads of this process; the default is torch's. PomonaError if torch is not installed."""
    try:
        import torch
    except ImportError as error:
        raise PomonaError("pre-training needs torch: pip install 'pomona[train]'") from error
    if threads is not None:
        torch.set_num_threads(threads)


def _claim(recipe: Recipe, out: Path, *, resume: bool, restart: bool) -> None:
    """Makes the folder this recipe's, or says why that cannot be; removes nothing unless told to restart."""
    run, known = out / RUN, {RUN, REPORT, MODEL}
    if run.is_file() and not restart:
        found = difference(read_json_object(run), {"recipe": recipe.identity()})
        if found is not None:
            raise PomonaError(
                f"{out}: holds a run of another recipe ({found.removeprefix('recipe.')}); "
                "go on with that recipe, choose another --out, or give --restart"
            )
        if not resume:
            raise PomonaError(f"{out}: holds a run already; give --resume to go on with it, or --restart")
        return
    if not run.is_file() and any(out.iterdir()):
        raise PomonaError(f"{out}: is not empty and holds no run; choose another --out")
    if not run.is_file() and resume:
        raise PomonaError(f"{out}: holds no run to go on with; leave --resume out")
    for name in ("text", "tokenizer", "data", "stages", "teacher", MODEL):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (*known - {MODEL}, "prepared.json", "model.gguf"):
        (out / name).unlink(missing_ok=True)
    write_json(run, {"recipe": recipe.identity()})


def _stage(
    recipe: Recipe,
    stage: StageSettings,
    out: Path,
    before: Path | None,
    prepared: Prepared,
    processes: Any,
    loss: LossFunction | None,
    progress: Progress,
    on_point: OnPoint,
) -> Path:
    """Trains a stage; gives the folder whose model.safetensors the next one begins with."""
    from pomona.models.safetensors_file import SafetensorsFile
    from pomona.pretraining.training import stage as training
    from pomona.pretraining.training.stage_loss import recipe_loss

    if loss is not None and (stage.prune is not None or stage.distill is not None):
        raise ValueError(f"stage {stage.name}: its recipe names a loss; give none beside it")
    folder = out / "stages" / stage.name
    config = prepared.config(recipe.config(stage))
    windows = prepared.windows(stage, recipe.seed)
    weights: Mapping[str, Any] | None = None
    identity = {
        "recipe": recipe.identity(),
        "stage": stage.name,
        "data": prepared.identity,
        "loss": None if loss is None else getattr(loss, "__name__", type(loss).__name__),
    }
    with ExitStack() as stack:
        if before is not None:
            file = stack.enter_context(SafetensorsFile(before / "model.safetensors"))
            weights = {name: file.array(name) for name in file.tensors}
        elif recipe.start is not None:
            given = stack.enter_context(ModelWeights(recipe.place(recipe.start)))
            given.check_shape(config)
            weights, identity["start"] = given, given.fingerprint
        if loss is None:
            loss, marks = recipe_loss(
                recipe, stage, config, windows, out, processes=processes, progress=progress
            )
            identity |= marks
        last = training.train_stage(
            recipe,
            stage,
            config,
            folder,
            processes=processes,
            windows=windows,
            validation=prepared.held_out(stage, recipe.seed, recipe.evaluation_windows),
            identity=identity,
            start=weights,
            loss=loss,
            peak_flops=_peak(processes.world),
            on_point=lambda point: on_point(stage, point),
        )
    if processes.main:
        draw_curve(f"{recipe.name}, {stage.name}", folder)
    if stage.prune is not None:
        if processes.main:
            prune_checkpoint(last, config, stage.prune, folder / PRUNED, progress=progress)
        processes.wait()
        last = folder / PRUNED
    return last


def draw_curve(title: str, folder: Path) -> Path:
    """curve.svg from the curve.csv of a stage's folder: training loss, smoothed, and validation loss."""
    points = read_curve(folder / "curve.csv")
    smooth, line = 0.0, []
    for number, point in enumerate(points):
        smooth += (point.loss - smooth) / min(number + 1, max(len(points) // 50, 1))
        line.append((point.tokens / 1e6, smooth))
    held_out = [
        (point.tokens / 1e6, point.validation_loss) for point in points if point.validation_loss is not None
    ]
    every = max(len(line) // 800, 1)
    picture = line_chart(
        title,
        "million tokens",
        "nats per token",
        [Line("training", tuple(line[::every])), Line("held out", tuple(held_out), dots=True)],
    )
    path = folder / "curve.svg"
    path.write_text(picture, encoding="utf-8")
    return path


def _finish(
    recipe: Recipe, out: Path, last: Path, prepared: Prepared, gguf: bool, progress: Progress
) -> RunReport:
    config = prepared.config(recipe.result(recipe.stages[-1]))
    stages = tuple(stage_report(stage, out / "stages" / stage.name) for stage in recipe.stages)
    record = {
        "recipe": recipe.identity(),
        "data": prepared.identity,
        "stages": [
            {"name": one.name, "tokens": one.tokens, "validation_loss": one.validation_loss} for one in stages
        ],
    }
    model = export_checkpoint(
        last / "model.safetensors",
        config,
        prepared.tokenizer,
        out / MODEL,
        record=record,
        overwrite=True,
        progress=progress,
    )
    file = None
    if gguf:
        from pomona.models.export_gguf import export_gguf

        file = export_gguf(model, out / "model.gguf", overwrite=True, progress=progress)
    parameters = config.embedding_parameters + config.non_embedding_parameters
    progress("sample", 0, 0)
    report = RunReport(
        model, file, parameters, config.vocab_size, stages, _sample(model, recipe.sample), prepared.left_out
    )
    write_json(out / REPORT, report.to_json())
    return report


def _sample(model: Path, text: str) -> str | None:
    from pomona.runtime.model import Model

    try:
        loaded = Model.load(str(model))
    except PomonaError:  # rows that are no multiple of 16
        return None
    try:
        return text + "".join(loaded.complete(text, max_new_tokens=SAMPLE_TOKENS))
    finally:
        loaded.close()


def stage_report(stage: StageSettings, folder: Path) -> StageReport:
    """The figures of a finished stage, from its curve."""
    points = read_curve(folder / "curve.csv")
    if not points or points[-1].step != stage.steps or points[-1].validation_loss is None:
        raise PomonaError(f"{folder / 'curve.csv'}: is not that of a finished stage; give --restart")
    tail = points[-max(len(points) // 20, 1) :]
    return StageReport(
        stage.name,
        stage.steps,
        points[-1].tokens,
        sum(point.dropped for point in points),
        sum(point.loss for point in tail) / len(tail),
        points[-1].validation_loss,
        _median([point.tokens_per_second for point in points]),
        _median([point.utilisation for point in points]),
        sum(point.seconds or 0.0 for point in points),
    )


def _median(values: list[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None


def _peak(world: int) -> float | None:
    """FLOP per second of all devices: by name where there are GPUs, else measured here."""
    import torch

    from pomona.pretraining.training.stage import measured_peak_flops

    if torch.cuda.is_available():
        one = peak_flops(torch.cuda.get_device_name())
        return None if one is None else one * world
    return measured_peak_flops() * world
